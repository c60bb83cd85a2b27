/* The spans of an ExportTraceServiceRequest that the join wants, read in one pass: `SpanReader.extract`. */

#include "_native_wire.h"

#define ABSENT ((Bytes){NOTHING, NOTHING})
static const uint8_t NOTHING[1]; /* where bytes lie that are not there: no function is given a null pointer */

enum { NAMES = 64, LENGTHS = 63 };

/* A name that was seen in this request: whether it is selected, and its text once it was needed. */
typedef struct {
    Bytes bytes;
    int selected;
    PyObject *text; /* owned */
} Name;

/* A span that may be asked for by its children: where its ids lie. */
typedef struct {
    Bytes trace, span, parent;
} Passed;

typedef struct {
    /* given, borrowed */
    PyObject *exact, *prefixes, *wanted, *attributes, *place, *run_of;
    uint64_t lengths[256]; /* by first byte of a wanted key: which lengths there are, bit LENGTHS for all beyond */
    /* of the request, owned */
    PyObject *rows, *indices, *runs, *pids, *extras, *links, *roots, *broken;
    Name names[NAMES];
    PyObject *trace, *trace_hex, *parent, *empty, *zero;
    Passed *passed;
    Py_ssize_t passed_count, passed_room;
    Py_ssize_t total;
    /* of the resource, owned; NULL until a span is taken */
    PyObject *run, *pid;
} Request;

/* Whether a Python bytes object holds the same, or with `prefix` what these bytes begin with. */
static int matches(PyObject *held, Bytes bytes, int prefix) {
    char *at;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(held, &at, &size) < 0) return FAILED;
    Py_ssize_t length = bytes.end - bytes.at;
    return (prefix ? length >= size : length == size) && memcmp(bytes.at, at, (size_t)size) == 0;
}

/* Whether the name selects a span: by an exact name or a prefix. */
static int selects(Request *request, Bytes name) {
    for (int prefix = 0; prefix < 2; prefix++) {
        PyObject *held = prefix ? request->prefixes : request->exact;
        Py_ssize_t count = PyTuple_Size(held);
        for (Py_ssize_t at = 0; at < count; at++) {
            int found = matches(PyTuple_GetItem(held, at), name, prefix);
            if (found != 0) return found;
        }
    }
    return 0;
}

/* The entry of a name in the request's cache; NULL with an error set. It is good until the next call. */
static Name *name_of(Request *request, Bytes bytes) {
    size_t length = (size_t)(bytes.end - bytes.at);
    uint32_t hash = (uint32_t)length;
    for (size_t at = length > 8 ? length - 8 : 0; at < length; at++) hash = hash * 31 + bytes.at[at];
    Name *name = &request->names[(hash ^ hash >> 7) % NAMES];
    if (name->bytes.at != NULL && (size_t)(name->bytes.end - name->bytes.at) == length &&
        memcmp(name->bytes.at, bytes.at, length) == 0)
        return name;
    Py_CLEAR(name->text);
    name->bytes = bytes;
    name->selected = selects(request, bytes);
    return name->selected == FAILED ? NULL : name;
}

static PyObject *text_of(Bytes bytes) {
    return PyUnicode_DecodeUTF8((const char *)bytes.at, bytes.end - bytes.at, NULL);
}

/* The bytes as an object, the one in `*last` where that holds the same. A new reference. */
static PyObject *same_bytes(PyObject **last, Bytes bytes) {
    if (*last == NULL || !matches(*last, bytes, 0)) {
        PyObject *made = PyBytes_FromStringAndSize((const char *)bytes.at, bytes.end - bytes.at);
        if (made == NULL) return NULL;
        Py_XDECREF(*last);
        *last = made;
    }
    Py_INCREF(*last);
    return *last;
}

/* `first` and `second` as one bytes object. */
static PyObject *joined(Bytes first, Bytes second) {
    PyObject *made = PyBytes_FromStringAndSize(NULL, (first.end - first.at) + (second.end - second.at));
    if (made == NULL) return NULL;
    char *at = PyBytes_AsString(made);
    memcpy(at, first.at, (size_t)(first.end - first.at));
    memcpy(at + (first.end - first.at), second.at, (size_t)(second.end - second.at));
    return made;
}

/* Put `value` into a list and let go of it; FAILED where it is NULL or memory is short. */
static int put(PyObject *list, PyObject *value) {
    int status = value == NULL ? -1 : PyList_Append(list, value);
    Py_XDECREF(value);
    return status < 0 ? FAILED : TAKEN;
}

/* The value of a KeyValue as `span_rows.plain` has it, into a dictionary under `key`, or the pair's own where that is
   NULL. */
static int put_pair(PyObject *values, Bytes pair, PyObject *key, int depth) {
    Field of_pair[MAX_FIELD + 1], of_value[MAX_FIELD + 1];
    uint32_t seen, kinds = 0;
    of_pair[1].body = ABSENT;
    if (!read_once(pair, PAIR, depth, of_pair, &seen)) return REFUSED;
    if (seen & 1u << 2 && !read_once(of_pair[2].body, VALUE, depth + 1, of_value, &kinds)) return REFUSED;
    if (kinds & (kinds - 1)) return REFUSED; /* one of several: which one counts is protobuf's to say */
    PyObject *value;
    double number;
    switch (kinds) {
    case 1u << 1: value = text_of(of_value[1].body); break;
    case 1u << 2: value = PyBool_FromLong(of_value[2].value != 0); break;
    case 1u << 3: value = PyLong_FromLongLong((long long)of_value[3].value); break;
    case 1u << 4:
        memcpy(&number, &of_value[4].value, sizeof number);
        value = PyFloat_FromDouble(number);
        break;
    default: Py_INCREF(Py_None); value = Py_None;
    }
    PyObject *own = key == NULL ? text_of(of_pair[1].body) : (Py_INCREF(key), key);
    int status = own == NULL || value == NULL ? -1 : PyDict_SetItem(values, own, value);
    Py_XDECREF(own);
    Py_XDECREF(value);
    return status < 0 ? FAILED : TAKEN;
}

/* The key of a KeyValue that is known. */
static Bytes key_of(Bytes pair) {
    Field field = {.body = ABSENT};
    Bytes key = ABSENT;
    while (pair.at < pair.end && next_field(&pair, &field))
        if (field.number == 1) key = field.body;
    return key;
}

/* The wanted key that these bytes are, borrowed, or NULL: then PyErr_Occurred tells. */
static PyObject *wanted_key(Request *request, Bytes key) {
    if (key.at == key.end) return NULL;
    Py_ssize_t length = key.end - key.at;
    if (!(request->lengths[key.at[0]] >> (length < LENGTHS ? length : LENGTHS) & 1)) return NULL;
    PyObject *bytes = PyBytes_FromStringAndSize((const char *)key.at, length);
    if (bytes == NULL) return NULL;
    PyObject *found = PyDict_GetItemWithError(request->wanted, bytes);
    Py_DECREF(bytes);
    return found;
}

/* Run and process of the spans of a resource, from its attributes; asked of Python once a resource. */
static int place_spans(Request *request, Bytes resource) {
    Field field = {.body = ABSENT};
    if (request->run != NULL) return TAKEN;
    PyObject *values = PyDict_New();
    int status = values == NULL ? FAILED : TAKEN;
    while (status == TAKEN && resource.at < resource.end) {
        if (!next_field(&resource, &field)) status = REFUSED;
        else if (field.number == 1) status = put_pair(values, field.body, NULL, 3);
    }
    PyObject *found = status == TAKEN ? PyObject_CallFunctionObjArgs(request->place, values, NULL) : NULL;
    Py_XDECREF(values);
    if (status != TAKEN) return status;
    if (found == NULL || !PyArg_ParseTuple(found, "OO", &request->run, &request->pid)) {
        request->run = request->pid = NULL;
        Py_XDECREF(found);
        return FAILED;
    }
    Py_INCREF(request->run);
    Py_INCREF(request->pid);
    Py_DECREF(found);
    return TAKEN;
}

/* Whether the id has this length and is not all zero. */
static int is_id(Bytes id, Py_ssize_t length) {
    if (id.end - id.at != length) return 0;
    while (id.at < id.end)
        if (*id.at++ != 0) return 1;
    return 0;
}

/* The run of a row: what its attributes name, else what its resource does, else its trace. A new reference. */
static PyObject *run_of_row(Request *request, PyObject *values, Bytes trace) {
    PyObject *run = values == NULL ? NULL : PyObject_CallFunctionObjArgs(request->run_of, values, NULL);
    if (values != NULL && run == NULL) return NULL;
    if (run == NULL || run == Py_None) {
        Py_XDECREF(run);
        run = request->run;
        Py_INCREF(run);
    }
    if (run != Py_None) return run;
    Py_DECREF(run);
    if (request->trace_hex == NULL) {
        char hex[32];
        for (int at = 0; at < 16; at++) {
            hex[2 * at] = "0123456789abcdef"[trace.at[at] >> 4];
            hex[2 * at + 1] = "0123456789abcdef"[trace.at[at] & 15];
        }
        request->trace_hex = PyUnicode_FromStringAndSize(hex, 32);
    }
    Py_XINCREF(request->trace_hex);
    return request->trace_hex;
}

/* Add a selected span to the rows, or to the broken ones. `found` has its fields, `values` its wanted attributes. */
static int take_span(Request *request, const Field *found, Name *name, uint64_t status, PyObject *values) {
    Bytes trace = found[1].body, span = found[2].body, parent = found[4].body;
    uint64_t start = found[7].value, end = found[8].value;
    int sound = is_id(trace, 16) && is_id(span, 8) && start > 0 && end >= start;
    if (request->trace == NULL || !matches(request->trace, trace, 0)) Py_CLEAR(request->trace_hex);
    if (sound && !is_id(parent, 8)) parent = ABSENT;
    if (name->text == NULL) name->text = text_of(name->bytes);
    PyObject *row = name->text == NULL ? NULL : PyTuple_New(7);
    if (row == NULL) return FAILED;
    PyObject *parts[7] = {
        name->text,
        same_bytes(&request->trace, trace),
        PyBytes_FromStringAndSize((const char *)span.at, span.end - span.at),
        same_bytes(parent.at == parent.end ? &request->empty : &request->parent, parent),
        PyLong_FromUnsignedLongLong(start),
        PyLong_FromUnsignedLongLong(end),
        status == 0 ? (Py_INCREF(request->zero), request->zero) : PyLong_FromUnsignedLongLong(status),
    };
    Py_INCREF(name->text);
    int whole = 1;
    for (int at = 0; at < 7; at++) {
        whole = whole && parts[at] != NULL;
        PyTuple_SetItem(row, at, parts[at]);
    }
    if (!whole || !sound) {
        int put_broken = whole ? put(request->broken, row) : (Py_DECREF(row), FAILED);
        return put_broken;
    }
    Py_ssize_t at = PyList_Size(request->rows);
    if (put(request->rows, row) != TAKEN) return FAILED;
    if (values != NULL) {
        PyObject *key = PyLong_FromSsize_t(at);
        int set = key == NULL ? -1 : PyDict_SetItem(request->extras, key, values);
        Py_XDECREF(key);
        if (set < 0) return FAILED;
    }
    if (put(request->runs, run_of_row(request, values, trace)) != TAKEN) return FAILED;
    if (put(request->indices, PyLong_FromSsize_t(request->total - 1)) != TAKEN) return FAILED;
    return PyList_Append(request->pids, request->pid) < 0 ? FAILED : TAKEN;
}

/* Keep where the ids of a span that is not joined lie. */
static int pass_span(Request *request, const Field *found) {
    if (request->passed_count == request->passed_room) {
        Py_ssize_t room = 2 * request->passed_room + 64;
        Passed *more = PyMem_Realloc(request->passed, (size_t)room * sizeof *more);
        if (more == NULL) {
            PyErr_NoMemory();
            return FAILED;
        }
        request->passed = more;
        request->passed_room = room;
    }
    request->passed[request->passed_count++] = (Passed){found[1].body, found[2].body, found[4].body};
    return TAKEN;
}

/* The status code of a Span.status field, 0 where it has none; one that is negative as an enumeration is refused. */
static int read_status(Bytes body, uint64_t *code) {
    Field found[MAX_FIELD + 1] = {0};
    uint32_t seen;
    if (!read_once(body, STATUS, 5, found, &seen)) return REFUSED;
    *code = found[3].value;
    return *code > INT32_MAX ? REFUSED : TAKEN;
}

/* An attribute of a span: checked, and where it is wanted put into `*values`, which is made at the first. */
static int take_attribute(Request *request, Bytes pair, PyObject **values, int *selected) {
    Bytes said;
    if (!text_pair(pair, &said)) {
        if (!is_known(pair, PAIR, 5)) return REFUSED;
        said = key_of(pair);
    }
    PyObject *key = wanted_key(request, said);
    if (key == NULL) return PyErr_Occurred() ? FAILED : TAKEN;
    if (*values == NULL && (*values = PyDict_New()) == NULL) return FAILED;
    int named = PySet_Contains(request->attributes, key);
    if (named < 0) return FAILED;
    *selected |= named;
    return put_pair(*values, pair, key, 5);
}

/* One span: all of it is checked, and what the join wants of it taken. */
static int read_span(Request *request, Bytes in, Bytes resource) {
    Field field, found[MAX_FIELD + 1];
    uint32_t seen = 0;
    uint64_t code = 0;
    PyObject *values = NULL;
    int selected = 0, status = TAKEN;
    for (int at = 1; at <= 8; at++) found[at] = (Field){.body = ABSENT};
    request->total++;
    while (status == TAKEN && in.at < in.end) {
        if (!known_field(&in, SPAN, &field)) {
            status = REFUSED;
            break;
        }
        int is = FIELDS[SPAN][field.number];
        if (is == PAIR) {
            status = take_attribute(request, field.body, &values, &selected);
        } else if (is == EVENT || is == LINK) {
            status = is_known(field.body, is, 5);
        } else {
            if (seen & 1u << field.number) status = REFUSED;
            else if (is == STATUS) status = read_status(field.body, &code);
            seen |= 1u << field.number;
            found[field.number] = field;
        }
    }
    Name *name = status == TAKEN ? name_of(request, found[5].body) : NULL;
    if (status == TAKEN && name == NULL) status = FAILED;
    Py_ssize_t rows = PyList_Size(request->rows);
    if (status == TAKEN && (selected || name->selected)) {
        status = place_spans(request, resource);
        if (status == TAKEN) status = take_span(request, found, name, code, values);
    }
    if (status == TAKEN && PyList_Size(request->rows) == rows) status = pass_span(request, found);
    Py_XDECREF(values);
    return status;
}

/* All spans of a ScopeSpans. */
static int read_scope(Request *request, Bytes in, Bytes resource) {
    Field field = {.body = ABSENT};
    int status = TAKEN;
    while (status == TAKEN && in.at < in.end) {
        if (!known_field(&in, SCOPE_SPANS, &field)) return REFUSED;
        if (field.number == 2) status = read_span(request, field.body, resource);
        else if (field.number == 1) status = is_known(field.body, SCOPE, 4);
    }
    return status;
}

/* All spans of a ResourceSpans; its resource may stand behind them. */
static int read_resource(Request *request, Bytes in) {
    Field field = {.body = ABSENT};
    Bytes resource = ABSENT, rest = in;
    int resources = 0, status = TAKEN;
    while (rest.at < rest.end) {
        if (!known_field(&rest, RESOURCE_SPANS, &field)) return REFUSED;
        if (field.number == 1 && (resources++ || !is_known(field.body, RESOURCE, 3))) return REFUSED;
        if (field.number == 1) resource = field.body;
    }
    while (status == TAKEN && in.at < in.end) {
        next_field(&in, &field);
        if (field.number == 2) status = read_scope(request, field.body, resource);
    }
    Py_CLEAR(request->run);
    Py_CLEAR(request->pid);
    return status;
}

/* What `SpanReader._link` notes of the spans that are not joined. */
static int link_spans(Request *request) {
    PyObject *keys = PySet_New(NULL), *last = NULL;
    int status = keys == NULL ? FAILED : TAKEN;
    Py_ssize_t count = PyList_Size(request->rows);
    for (Py_ssize_t at = 0; status == TAKEN && at < count; at++) {
        PyObject *row = PyList_GetItem(request->rows, at), *key = PyTuple_GetItem(row, 1);
        Py_INCREF(key);
        PyBytes_Concat(&key, PyTuple_GetItem(row, 2));
        status = key == NULL || PySet_Add(keys, key) < 0 ? FAILED : TAKEN;
        Py_XDECREF(key);
    }
    for (Py_ssize_t at = 0; status == TAKEN && at < request->passed_count; at++) {
        Passed *passed = &request->passed[at];
        int above = is_id(passed->parent, 8);
        if (!above && passed->parent.at != passed->parent.end) continue;
        PyObject *key = joined(passed->trace, passed->span);
        int taken = key == NULL ? -1 : PySet_Contains(keys, key);
        if (taken < 0) status = FAILED;
        if (taken == 0 && above) {
            /* Siblings share one key of their parent. */
            PyObject *parent = joined(passed->trace, passed->parent);
            int same = parent == NULL || last == NULL ? 0 : PyObject_RichCompareBool(last, parent, Py_EQ);
            if (same == 1) Py_DECREF(parent);
            else Py_XDECREF(last), last = parent;
            status = last == NULL || same < 0 || PyDict_SetItem(request->links, key, last) < 0 ? FAILED : TAKEN;
        } else if (taken == 0) {
            PyObject *trace = PyBytes_FromStringAndSize((const char *)passed->trace.at, passed->trace.end - passed->trace.at);
            status = trace == NULL || PySet_Add(request->roots, trace) < 0 ? FAILED : TAKEN;
            Py_XDECREF(trace);
        }
        Py_XDECREF(key);
    }
    Py_XDECREF(last);
    Py_XDECREF(keys);
    return status;
}

/* Make the containers that are filled; FAILED where memory is short. */
static int begin(Request *request) {
    PyObject **lists[] = {&request->rows, &request->indices, &request->runs, &request->pids, &request->broken};
    for (size_t at = 0; at < sizeof lists / sizeof *lists; at++)
        if ((*lists[at] = PyList_New(0)) == NULL) return FAILED;
    request->extras = PyDict_New();
    request->links = PyDict_New();
    request->roots = PySet_New(NULL);
    request->zero = PyLong_FromLong(0);
    PyObject *key, *value;
    Py_ssize_t at = 0, length;
    char *bytes;
    while (PyDict_Next(request->wanted, &at, &key, &value)) {
        if (PyBytes_AsStringAndSize(key, &bytes, &length) < 0) return FAILED;
        if (length > 0) request->lengths[(uint8_t)bytes[0]] |= (uint64_t)1 << (length < LENGTHS ? length : LENGTHS);
    }
    return request->extras && request->links && request->roots && request->zero ? TAKEN : FAILED;
}

static void end(Request *request) {
    PyObject **owned[] = {&request->rows,  &request->indices, &request->runs,  &request->pids,      &request->extras,
                          &request->links, &request->roots,   &request->broken, &request->trace,    &request->trace_hex,
                          &request->parent, &request->empty,  &request->zero,  &request->run,       &request->pid};
    for (size_t at = 0; at < sizeof owned / sizeof *owned; at++) Py_CLEAR(*owned[at]);
    for (int at = 0; at < NAMES; at++) Py_CLEAR(request->names[at].text);
    PyMem_Free(request->passed);
}

/* extract(payload, exact, prefixes, wanted, attributes, place, run_of): see _native.pyi. */
PyObject *native_extract(PyObject *self, PyObject *args) {
    (void)self;
    Request request = {0};
    PyObject *payload, *result = NULL;
    if (!PyArg_ParseTuple(args, "OO!O!O!OOO", &payload, &PyTuple_Type, &request.exact, &PyTuple_Type, &request.prefixes,
                          &PyDict_Type, &request.wanted, &request.attributes, &request.place, &request.run_of))
        return NULL;
    if (!PyBytes_Check(payload)) Py_RETURN_NONE;
    const uint8_t *at = (const uint8_t *)PyBytes_AsString(payload);
    Bytes in = {at, at + PyBytes_Size(payload)};
    int status = in.end - in.at > INT32_MAX / 2 ? REFUSED : begin(&request);
    while (status == TAKEN && in.at < in.end) {
        Field field = {.body = ABSENT};
        if (!next_field(&in, &field) || field.number != 1 || field.type != LENGTH_TYPE) status = REFUSED;
        else status = read_resource(&request, field.body);
    }
    if (status == TAKEN) {
        Py_ssize_t rows = PyList_Size(request.rows);
        if (rows > 0 && rows < request.total) status = link_spans(&request);
    }
    if (status == TAKEN)
        result = Py_BuildValue("(nOOOOOOOO)", request.total, request.rows, request.indices, request.runs, request.pids,
                               request.extras, request.links, request.roots, request.broken);
    end(&request);
    if (status == REFUSED) Py_RETURN_NONE;
    return result;
}
