/* What the files of joulegram_processor._native share. See native.py for what the module is and is not. */

#ifndef JOULEGRAM_NATIVE_H
#define JOULEGRAM_NATIVE_H

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Bytes from `at` up to but not including `end`; both lie in a buffer that outlives the value. */
typedef struct {
    const uint8_t *at;
    const uint8_t *end;
} Bytes;

/* One field of a protobuf message: `value` for a varint or fixed field, `body` for one with a length. */
typedef struct {
    uint32_t number;
    uint32_t type;
    uint64_t value;
    Bytes body;
} Field;

enum { VARINT_TYPE = 0, FIXED64_TYPE = 1, LENGTH_TYPE = 2, FIXED32_TYPE = 5 };

/* What a step came to; FAILED has a Python error set. */
enum { REFUSED = 0, TAKEN = 1, FAILED = -1 };

/* Wide enough for a product of two 64-bit integers. A compiler that has none builds no native part. */
__extension__ typedef __int128 Wide;

int next_field(Bytes *in, Field *field);

int read_integer(PyObject *object, int64_t *value);
int read_column(PyObject *list, Py_ssize_t count, int64_t **out);
void *zeroed(Py_ssize_t count, size_t size);

/* The time in which a span is innermost, and pieces that grow. */
typedef struct {
    int64_t start, end, index;
} Piece;

typedef struct {
    Piece *items;
    Py_ssize_t count, room;
} Pieces;

int add_piece(Pieces *pieces, int64_t start, int64_t end, int64_t index);

/* A boundary of a span or a piece. */
typedef struct {
    int64_t instant;
    int32_t index;
    int32_t begins;
} Boundary;

int by_boundary(const void *first, const void *second);

PyObject *native_extract(PyObject *self, PyObject *args);
PyObject *native_holds(PyObject *self, PyObject *args);
PyObject *native_innermost(PyObject *self, PyObject *args);
PyObject *native_sweep(PyObject *self, PyObject *args);
PyObject *native_share(PyObject *self, PyObject *args);
PyObject *native_join(PyObject *self, PyObject *args);
PyObject *native_splice(PyObject *self, PyObject *args);

#endif
