/* What the files of joulegram._native share. See native.py for what the module is and is not. */

#ifndef JOULEGRAM_SDK_NATIVE_H
#define JOULEGRAM_SDK_NATIVE_H

#define _GNU_SOURCE /* clock_gettime */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <stddef.h>
#include <structmember.h>
#include <time.h>

/* What one thread does: `ThreadState` of cpu_account.py, which says what the members are. NULL reads as None. */
typedef struct {
    PyObject_HEAD
    PyObject *context, *span;
    long long since_ns, until_ns, ahead_ns, forks;
    char in_step, joined_step;
} State;

/* The types of the module, which each interpreter has for itself, and how many forks lie behind its process. */
typedef struct {
    PyObject *state, *watch;
    long long forks;
} Types;

extern PyType_Spec native_watch_spec;

/* Of every type here: memory, zeroed, as a new reference; and its end. */
void *native_make(PyTypeObject *type);
void native_destroy(PyObject *self);

#endif
