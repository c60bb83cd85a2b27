/* libcuda.so.1 as far as benchmarks/nvml_load.py calls it: one device of 2 multiprocessors, on which a launch only says
 * in the file `busy` beside the library whose it is. A call out of order, or with other than what it is for, is refused. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, INVALID_VALUE = 1, NOT_INITIALIZED = 3, INVALID_CONTEXT = 201, INVALID_PTX = 218, NOT_FOUND = 500 };

static int started, context, module, kernel;
static void *current;

int cuInit(unsigned flags) {
    started = !flags;
    return flags ? INVALID_VALUE : OK;
}

int cuGetErrorString(int code, const char **words) {
    *words = code == INVALID_VALUE ? "invalid argument" : code == INVALID_PTX ? "a PTX JIT compilation failed" : "refused";
    return OK;
}

int cuDeviceGetCount(int *count) {
    *count = 1;
    return started ? OK : NOT_INITIALIZED;
}

int cuDeviceGet(int *device, int ordinal) {
    *device = 40;
    return ordinal ? INVALID_VALUE : OK;
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = 2;
    return attribute == 16 && device == 40 ? OK : INVALID_VALUE;
}

int cuDevicePrimaryCtxRetain(void **to, int device) {
    *to = &context;
    return device == 40 ? OK : INVALID_VALUE;
}

int cuCtxSetCurrent(void *to) {
    current = to;
    return to == &context ? OK : INVALID_CONTEXT;
}

int cuModuleLoadData(void **to, const char *ptx) {
    *to = &module;
    return !current ? INVALID_CONTEXT : strstr(ptx, ".version") && strstr(ptx, ".entry busy(") ? OK : INVALID_PTX;
}

int cuModuleGetFunction(void **to, void *from, const char *name) {
    *to = &kernel;
    return from == &module && !strcmp(name, "busy") ? OK : NOT_FOUND;
}

int cuMemAlloc_v2(unsigned long long *to, size_t bytes) {
    *to = 0x7f0000000000;
    return current && bytes == 4 ? OK : INVALID_VALUE;
}

int cuLaunchKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned tx, unsigned ty, unsigned tz,
                   unsigned shared, void *stream, void **arguments, void **extra) {
    Dl_info here;
    char path[4096];
    FILE *file;
    if (!current || function != &kernel)
        return INVALID_CONTEXT;
    if (!x || x % 2 || y != 1 || z != 1 || !tx || tx > 1024 || ty != 1 || tz != 1 || shared || stream || extra ||
        *(unsigned long long *)arguments[0] != 0x7f0000000000 || !*(unsigned *)arguments[1])
        return INVALID_VALUE;
    if (!dladdr((void *)&cuInit, &here) || strlen(here.dli_fname) + 8 > sizeof path)
        return NOT_FOUND;
    strcpy(path, here.dli_fname);
    strcpy(strrchr(path, '/') + 1, "busy");
    if (access(path, F_OK) && (file = fopen(path, "we"))) {
        fprintf(file, "%d\n", (int)getpid());
        fclose(file);
    }
    return OK;
}

int cuCtxSynchronize(void) {
    usleep(10000);
    return current ? OK : INVALID_CONTEXT;
}
