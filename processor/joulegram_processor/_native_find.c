/* Whether bytes hold others: the C library's search, several times as fast as the interpreter's on whole requests. */

#define _GNU_SOURCE /* memmem */
#include "_native.h"

/* holds(payload, mark): see _native.pyi. */
PyObject *native_holds(PyObject *self, PyObject *args) {
    (void)self;
    const char *payload, *mark;
    Py_ssize_t size, length;
    if (!PyArg_ParseTuple(args, "y#y#", &payload, &size, &mark, &length)) return NULL;
    return PyBool_FromLong(memmem(payload, (size_t)size, mark, (size_t)length) != NULL);
}
