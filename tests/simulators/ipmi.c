/* A management controller behind the kernel's /dev/ipmi0, for a process that is started with this library preloaded.
 *
 * IPMI_PATH is the device it answers for; any other path that begins with /dev/ipmi is not there. IPMI_STATE names the
 * file that says how, read anew at each open and request, of lines "name number" (those left out are as below). To
 * IPMI_STATE.log each request adds a line: its msgid, and "main" or "thread", where it was made.
 *
 * The device is a timer, which poll and epoll of the real kernel find readable when an answer lies ready. Structures
 * and numbers are those of the kernel's own header; what is refused is refused as drivers/char/ipmi does. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/ipmi.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <unistd.h>

typedef struct {
    int open_errno, send_errno, receive_errno;
    int watts, code, group, state, bytes;
    int delay_ms; /* until the answer lies ready */
    int silent;   /* 1: no answer */
    int held;     /* 1: no answer until the next request is made */
    int stranger; /* 1: the answer bears another number */
    int event;    /* 1: an event with the right number lies before the answer */
} State;

typedef struct {
    int type;
    long msgid;
    unsigned short length;
    unsigned char data[64];
} Message;

static int device = -1;
static int queued;
static Message queue[16];

static State load(void) {
    State s = {.watts = 210, .group = 0xdc, .state = 0x40, .bytes = 19};
    const struct { const char *name; int *at; } known[] = {
        {"open_errno", &s.open_errno}, {"send_errno", &s.send_errno}, {"receive_errno", &s.receive_errno},
        {"watts", &s.watts}, {"code", &s.code}, {"group", &s.group}, {"state", &s.state}, {"bytes", &s.bytes},
        {"delay_ms", &s.delay_ms}, {"silent", &s.silent}, {"held", &s.held}, {"stranger", &s.stranger},
        {"event", &s.event},
    };
    const char *path = getenv("IPMI_STATE");
    FILE *file = path ? fopen(path, "re") : NULL;
    char name[32];
    int value;
    while (file && fscanf(file, "%31s %d", name, &value) == 2)
        for (size_t i = 0; i < sizeof known / sizeof *known; i++)
            if (!strcmp(name, known[i].name))
                *known[i].at = value;
    if (file)
        fclose(file);
    return s;
}

static void note(long msgid) {
    char path[4096];
    snprintf(path, sizeof path, "%s.log", getenv("IPMI_STATE"));
    FILE *file = fopen(path, "ae");
    if (file) {
        fprintf(file, "%ld %s\n", msgid, syscall(SYS_gettid) == getpid() ? "main" : "thread");
        fclose(file);
    }
}

/* The device is readable after so long, at once, or (-1) not. */
static void ready_in(int delay_ms) {
    struct itimerspec when = {{0, 0}, {delay_ms / 1000, delay_ms % 1000 * 1000000L}};
    if (delay_ms == 0)
        when.it_value.tv_nsec = 1;
    if (delay_ms < 0)
        when.it_value.tv_sec = when.it_value.tv_nsec = 0;
    timerfd_settime(device, 0, &when, NULL);
    struct pollfd at_once = {device, POLLIN, 0};
    if (delay_ms == 0)
        poll(&at_once, 1, -1);
}

static void put(int type, long msgid, unsigned short length, const unsigned char *data) {
    if (queued == 16)
        return;
    queue[queued].type = type;
    queue[queued].msgid = msgid;
    queue[queued].length = length;
    memcpy(queue[queued++].data, data, length);
}

/* DCMI 1.5, 6.6.1, byte for byte. */
static unsigned short reading(const State *s, unsigned char *data) {
    const unsigned watts[] = {s->watts, 2, 468, 184};
    int at = 0;
    data[at++] = s->code;
    if (s->code != 0)
        return at;
    data[at++] = s->group;
    for (int i = 0; i < 4; i++) {
        data[at++] = watts[i] & 0xff;
        data[at++] = watts[i] >> 8;
    }
    const unsigned char rest[] = {0x8a, 0x8b, 0x37, 0x66, 0xe8, 0x03, 0, 0, s->state};
    memcpy(data + at, rest, sizeof rest);
    return s->bytes;
}

static int send_command(const struct ipmi_req *request) {
    const struct ipmi_system_interface_addr *address = (const void *)request->addr;
    static const unsigned char get_power_reading[] = {0xdc, 0x01, 0x00, 0x00};
    unsigned char data[64] = {IPMI_INVALID_CMD_COMPLETION_CODE};
    unsigned short length = 1;
    State s = load();
    if (s.send_errno)
        return s.send_errno;
    if (request->addr_len < sizeof *address || address->addr_type != IPMI_SYSTEM_INTERFACE_ADDR_TYPE ||
        address->channel != IPMI_BMC_CHANNEL || address->lun != 0)
        return EINVAL;
    note(request->msgid);
    if (request->msg.netfn == 0x2c && request->msg.cmd == 0x02 && request->msg.data_len == sizeof get_power_reading &&
        !memcmp(request->msg.data, get_power_reading, sizeof get_power_reading))
        length = reading(&s, data);
    if (s.event)
        put(IPMI_ASYNC_EVENT_RECV_TYPE, request->msgid, 16, (const unsigned char *)"\x01\0\x02 sixteen byte");
    if (!s.silent)
        put(IPMI_RESPONSE_RECV_TYPE, request->msgid + (s.stranger ? 1000 : 0), length, data);
    if (queued && !s.held)
        ready_in(s.delay_ms);
    return 0;
}

static int receive(struct ipmi_recv *into) {
    const struct ipmi_system_interface_addr from = {IPMI_SYSTEM_INTERFACE_ADDR_TYPE, IPMI_BMC_CHANNEL, 0};
    struct pollfd now = {device, POLLIN, 0};
    State s = load();
    if (s.receive_errno)
        return s.receive_errno;
    if (poll(&now, 1, 0) != 1)
        return EAGAIN;
    if (into->addr_len < sizeof from)
        return EINVAL;
    Message message = queue[0];
    memmove(queue, queue + 1, --queued * sizeof *queue);
    if (queued == 0)
        ready_in(-1);
    int rv = into->msg.data_len < message.length ? EMSGSIZE : 0;
    if (rv == 0)
        into->msg.data_len = message.length;
    memcpy(into->addr, &from, sizeof from);
    memcpy(into->msg.data, message.data, into->msg.data_len);
    into->addr_len = sizeof from;
    into->recv_type = message.type;
    into->msgid = message.msgid;
    into->msg.netfn = 0x2d;
    into->msg.cmd = 0x02;
    return rv;
}

/* Whether the path is ours to answer for; then *fd is what open gives, or -1 with errno. */
static int ours(const char *path, int flags, int *fd) {
    const char *answered = getenv("IPMI_PATH");
    if (strncmp(path, "/dev/ipmi", 9) != 0)
        return 0;
    State s = load();
    errno = !answered || strcmp(path, answered) ? ENOENT : (flags & O_ACCMODE) != O_RDWR ? EACCES : s.open_errno;
    queued = 0;
    *fd = errno ? -1 : (device = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC));
    return 1;
}

#define OPENS(name)                                                                                                    \
    int name(const char *path, int flags, ...) {                                                                       \
        int (*real)(const char *, int, ...) = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, #name);                \
        va_list rest;                                                                                                  \
        int fd;                                                                                                        \
        va_start(rest, flags);                                                                                         \
        unsigned mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, unsigned) : 0;                                  \
        va_end(rest);                                                                                                  \
        return ours(path, flags, &fd) ? fd : real(path, flags, mode);                                                  \
    }

OPENS(open)
OPENS(open64)

int ioctl(int fd, unsigned long request, ...) {
    int (*real)(int, unsigned long, ...) = (int (*)(int, unsigned long, ...))dlsym(RTLD_NEXT, "ioctl");
    va_list rest;
    va_start(rest, request);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    if (fd < 0 || fd != device)
        return real(fd, request, argument);
    switch ((unsigned)request) {
    case (unsigned)IPMICTL_SEND_COMMAND:
        errno = send_command(argument);
        return errno ? -1 : 0;
    case (unsigned)IPMICTL_RECEIVE_MSG_TRUNC:
        errno = receive(argument);
        return errno ? -1 : 0;
    default:
        return real(fd, request, argument);
    }
}
