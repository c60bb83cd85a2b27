/* NVIDIA's libnvidia-ml.so.1 as far as joulegram calls it: what it says stands in nvml.txt beside the library, read
 * anew at each call. A line is one of
 *
 *     init CODE                            what nvmlInit_v2 answers
 *     count CODE                           what nvmlDeviceGetCount_v2 answers
 *     since NS                             on CLOCK_MONOTONIC: from then on each counter rises by its board's power
 *     board UUID ENERGY_MJ POWER_MW MIG AGE FIND UUID_CODE ENERGY POWER MIGMODE SAMPLES NAME
 *     sample BOARD PID AT_US SM_PERCENT    of nvmlDeviceGetProcessUtilization, by the board's index
 *
 * with the boards in the order of their index; the six words before NAME are the codes of the calls they are
 * named for, and a NAME of - is refused. With MIG the samples are not supported, whatever their code. AGE goes up when a board is reset: a handle taken before is dead (INVALID_ARGUMENT) from then on. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum {
    OK = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    OPERATING_SYSTEM = 17,
    UNKNOWN = 999
};

typedef struct {
    char uuid[96], name[96];
    unsigned long long energy_mj;
    unsigned power_mw, mig, age;
    int find, uuid_code, energy_code, power_code, mig_code, samples_code;
} Board;

/* nvmlProcessUtilizationSample_t. */
typedef struct {
    unsigned pid;
    unsigned long long at_us;
    unsigned sm, memory, encoder, decoder;
} Sample;

typedef struct {
    int init, count_code, boards, samples;
    unsigned long long since_ns;
    Board board[16];
    Sample sample[64];
    unsigned sampled[64];
} State;

static int users;

static int load(State *state) {
    Dl_info here;
    char path[4096], line[512], *slash;
    FILE *file;
    memset(state, 0, sizeof *state);
    if (!dladdr((void *)&load, &here) || strlen(here.dli_fname) + 16 > sizeof path)
        return OPERATING_SYSTEM;
    strcpy(path, here.dli_fname);
    slash = strrchr(path, '/');
    strcpy(slash ? slash + 1 : path, "nvml.txt");
    if (!(file = fopen(path, "re")))
        return OPERATING_SYSTEM;
    while (fgets(line, sizeof line, file)) {
        Board *b = &state->board[state->boards];
        if (sscanf(line, "init %d", &state->init) == 1 || sscanf(line, "count %d", &state->count_code) == 1 ||
            sscanf(line, "since %llu", &state->since_ns) == 1)
            continue;
        if (state->boards < 16 &&
            sscanf(line, "board %95s %llu %u %u %u %d %d %d %d %d %d %95[^\n]", b->uuid, &b->energy_mj, &b->power_mw,
                   &b->mig, &b->age, &b->find, &b->uuid_code, &b->energy_code, &b->power_code, &b->mig_code,
                   &b->samples_code, b->name) == 12)
            state->boards++;
        else if (state->samples < 64 &&
                 sscanf(line, "sample %u %u %llu %u", &state->sampled[state->samples],
                        &state->sample[state->samples].pid, &state->sample[state->samples].at_us,
                        &state->sample[state->samples].sm) == 4)
            state->samples++;
    }
    fclose(file);
    return OK;
}

static void *handle_of(const State *state, int index) {
    return (void *)(uintptr_t)(((uintptr_t)state->board[index].age << 8) + (uintptr_t)index + 1);
}

/* The board of a handle, or the code that stands for it. */
static int find(void *handle, State *state, Board **board) {
    int code = users ? load(state) : UNINITIALIZED;
    for (int i = 0; code == OK && i < state->boards; i++)
        if (handle_of(state, i) == handle) {
            *board = &state->board[i];
            return (*board)->find;
        }
    return code ? code : INVALID_ARGUMENT;
}

static int text(const char *from, char *to, unsigned size) {
    if (strlen(from) >= size)
        return INSUFFICIENT_SIZE;
    strcpy(to, from);
    return OK;
}

int nvmlInitWithFlags(unsigned flags) {
    State state;
    int code = load(&state);
    (void)flags;
    if (code == OK && (code = state.init) == OK)
        users++;
    return code;
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

int nvmlShutdown(void) {
    if (!users)
        return UNINITIALIZED;
    users--;
    return OK;
}

const char *nvmlErrorString(int code) {
    switch (code) {
    case 0: return "Success";
    case 1: return "Uninitialized";
    case 2: return "Invalid Argument";
    case 3: return "Not Supported";
    case 4: return "Insufficient Permissions";
    case 6: return "Not Found";
    case 9: return "Driver Not Loaded";
    case 10: return "Timeout";
    case 15: return "GPU is lost";
    case 16: return "GPU requires restart";
    case 18: return "Driver/library version mismatch";
    case 28: return "GPU not found";
    default: return "Unknown Error";
    }
}

int nvmlSystemGetDriverVersion(char *to, unsigned size) { return users ? text("550.54.15", to, size) : UNINITIALIZED; }

int nvmlDeviceGetCount_v2(unsigned *count) {
    State state;
    int code = users ? load(&state) : UNINITIALIZED;
    if (code == OK && (code = state.count_code) == OK)
        *count = (unsigned)state.boards;
    return code;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    State state;
    int code = users ? load(&state) : UNINITIALIZED;
    if (code != OK)
        return code;
    if (index >= (unsigned)state.boards)
        return INVALID_ARGUMENT;
    *handle = handle_of(&state, (int)index);
    return state.board[index].find;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) {
    State state;
    int code = users ? load(&state) : UNINITIALIZED;
    for (int i = 0; code == OK && i < state.boards; i++)
        if (!strcmp(state.board[i].uuid, uuid)) {
            *handle = handle_of(&state, i);
            return state.board[i].find;
        }
    return code ? code : NOT_FOUND;
}

int nvmlDeviceGetUUID(void *handle, char *to, unsigned size) {
    State state;
    Board *board;
    int code = find(handle, &state, &board);
    return code ? code : board->uuid_code ? board->uuid_code : text(board->uuid, to, size);
}

int nvmlDeviceGetName(void *handle, char *to, unsigned size) {
    State state;
    Board *board;
    int code = find(handle, &state, &board);
    return code ? code : !strcmp(board->name, "-") ? UNKNOWN : text(board->name, to, size);
}

int nvmlDeviceGetMigMode(void *handle, unsigned *current, unsigned *pending) {
    State state;
    Board *board;
    int code = find(handle, &state, &board);
    if (code == OK && (code = board->mig_code) == OK)
        *current = *pending = board->mig;
    return code;
}

int nvmlDeviceGetPowerUsage(void *handle, unsigned *milliwatts) {
    State state;
    Board *board;
    int code = find(handle, &state, &board);
    if (code == OK && (code = board->power_code) == OK)
        *milliwatts = board->power_mw;
    return code;
}

/* As the header says: a first call without a buffer for the number, NOT_FOUND where nothing is newer. */
int nvmlDeviceGetProcessUtilization(void *handle, Sample *to, unsigned *count, unsigned long long since_us) {
    State state;
    Board *board;
    unsigned found = 0, room = to ? *count : 0;
    int code = find(handle, &state, &board);
    if (code != OK || (code = board->samples_code) != OK)
        return code;
    if (board->mig)
        return NOT_SUPPORTED;
    for (int i = 0; i < state.samples; i++)
        if (&state.board[state.sampled[i]] == board && state.sample[i].at_us > since_us) {
            if (found < room)
                to[found] = state.sample[i];
            found++;
        }
    *count = found;
    return !found ? NOT_FOUND : found > room ? INSUFFICIENT_SIZE : OK;
}

/* Very old libraries have no such function; OLD builds one. */
#ifndef OLD
static unsigned long long drawn_mj(const State *state, const Board *board) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (!state->since_ns)
        return 0;
    return ((unsigned long long)now.tv_sec * 1000000000 + (unsigned long long)now.tv_nsec - state->since_ns) / 1000 *
           board->power_mw / 1000000;
}

int nvmlDeviceGetTotalEnergyConsumption(void *handle, unsigned long long *millijoules) {
    State state;
    Board *board;
    int code = find(handle, &state, &board);
    if (code == OK && (code = board->energy_code) == OK)
        *millijoules = board->energy_mj + drawn_mj(&state, board);
    return code;
}
#endif
