/* Bytes put into the spans of a trace request: wire.splice, where each span that is chosen gains some or goes.

   Only requests in the common form are taken: tags and lengths no longer than need be, no groups. */

#include "_native.h"

enum { REQUEST, RESOURCE_SPANS, SCOPE_SPANS };
static const uint32_t INNER[] = {[REQUEST] = 1, [RESOURCE_SPANS] = 2, [SCOPE_SPANS] = 2}; /* the field looked into */

/* What is put in where. */
typedef struct {
    const int64_t *chosen; /* indices of spans, growing; NULL for all */
    PyObject *additions;   /* for each: bytes, or None to leave the span out */
    Py_ssize_t count;
} Edits;

/* How far the spans have been gone through: the index of the next, and which edit it may be. */
typedef struct {
    int64_t span;
    Py_ssize_t edit;
} Place;

static size_t varint_size(size_t value) {
    size_t size = 1;
    while (value >>= 7) size++;
    return size;
}

/* Write the tag of field `number`, which is below 16, and a length; returns where it ends. */
static uint8_t *write_head(uint8_t *out, uint32_t number, size_t length) {
    *out++ = (uint8_t)(number << 3 | LENGTH_TYPE);
    for (; length > 0x7F; length >>= 7) *out++ = (uint8_t)(length | 0x80);
    *out++ = (uint8_t)length;
    return out;
}

static uint8_t *write_bytes(uint8_t *out, const void *from, size_t size) {
    memcpy(out, from, size);
    return out + size;
}

/* The edit of the next span: 1 and its bytes (NULL to leave the span out), 0 if it has none, FAILED. */
static int next_edit(const Edits *edits, Place *place, const char **addition, Py_ssize_t *size) {
    int64_t index = place->span++;
    while (edits->chosen != NULL && place->edit < edits->count && edits->chosen[place->edit] < index) place->edit++;
    if (place->edit >= edits->count || (edits->chosen != NULL && edits->chosen[place->edit] != index)) return 0;
    PyObject *bytes = PyList_GetItem(edits->additions, place->edit++);
    *addition = NULL;
    *size = 0;
    if (bytes == NULL) return FAILED;
    return bytes == Py_None || PyBytes_AsStringAndSize(bytes, (char **)addition, size) == 0 ? 1 : FAILED;
}

/* One message with its edits: its new size into `*size`, and where `*out` is not NULL, written there. */
static int rewrite(Bytes in, int level, const Edits *edits, Place *place, size_t *size, uint8_t **out) {
    Field field;
    const char *addition;
    Py_ssize_t more;
    *size = 0;
    while (in.at < in.end) {
        const uint8_t *begin = in.at;
        if (!next_field(&in, &field)) return REFUSED;
        size_t whole = (size_t)(in.at - begin), inner = (size_t)(field.body.end - field.body.at);
        if (field.number != INNER[level] || field.type != LENGTH_TYPE) {
            if (field.number == INNER[level]) return REFUSED;
            *size += whole;
            if (out != NULL) *out = write_bytes(*out, begin, whole);
        } else if (level == SCOPE_SPANS) {
            int edit = next_edit(edits, place, &addition, &more);
            if (edit == FAILED) return FAILED;
            if (edit && addition == NULL) continue;
            size_t grown = inner + (edit ? (size_t)more : 0);
            *size += edit ? 1 + varint_size(grown) + grown : whole;
            if (out == NULL) continue;
            if (edit) begin = field.body.at, *out = write_head(*out, field.number, grown);
            *out = write_bytes(*out, begin, (size_t)(in.at - begin));
            if (edit) *out = write_bytes(*out, addition, (size_t)more);
        } else {
            Place again = *place;
            int status = rewrite(field.body, level + 1, edits, place, &inner, NULL);
            if (status != TAKEN) return status;
            *size += 1 + varint_size(inner) + inner;
            if (out == NULL) continue;
            *out = write_head(*out, field.number, inner);
            status = rewrite(field.body, level + 1, edits, &again, &inner, out);
            if (status != TAKEN) return status;
        }
    }
    return TAKEN;
}

/* splice(payload, chosen, additions): see _native.pyi. */
PyObject *native_splice(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *payload, *chosen, *additions, *result = NULL;
    if (!PyArg_ParseTuple(args, "OOO!", &payload, &chosen, &PyList_Type, &additions)) return NULL;
    if (!PyBytes_Check(payload)) Py_RETURN_NONE;
    int64_t *indices = NULL;
    Edits edits = {.additions = additions, .count = PyList_Size(additions)};
    const uint8_t *at = (const uint8_t *)PyBytes_AsString(payload);
    Bytes in = {at, at + PyBytes_Size(payload)};
    Place place = {0, 0};
    size_t size = 0;
    int status = chosen == Py_None ? TAKEN : read_column(chosen, edits.count, &indices);
    for (Py_ssize_t each = 1; indices != NULL && status == TAKEN && each < edits.count; each++)
        if (indices[each] <= indices[each - 1]) status = REFUSED;
    edits.chosen = indices;
    if (status == TAKEN) status = rewrite(in, REQUEST, &edits, &place, &size, NULL);
    if (status == TAKEN && indices == NULL && place.span != edits.count) status = REFUSED;
    if (status == TAKEN && size >= INT32_MAX) status = REFUSED;
    if (status == TAKEN) {
        result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
        uint8_t *out = result == NULL ? NULL : (uint8_t *)PyBytes_AsString(result);
        place = (Place){0, 0};
        status = result == NULL ? FAILED : rewrite(in, REQUEST, &edits, &place, &size, &out);
        if (status != TAKEN) Py_CLEAR(result);
    }
    PyMem_Free(indices);
    if (status == REFUSED) Py_RETURN_NONE;
    return result;
}
