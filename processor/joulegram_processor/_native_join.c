/* The figures, the encoded attributes and the ledger lines of spans of which one thing holds: join_columns.py's loop.

   Energy and times are refused from 2**53 on, so that a double holds each and a division of two is rounded once, as
   Python's is; carbon is from 2**42 ug on, so that the squares fit 128 bits. */

#include "_native.h"

static const int64_t UJ_MG_PER_UG_KWH = 3600000000, PPM = 1000000;
static const int64_t EXACT = (int64_t)1 << 53, MAX_UG = (int64_t)1 << 42;
enum { MAX_DOUBLES = 9 };

/* Text that grows. */
typedef struct {
    char *at;
    size_t size, room;
    int failed; /* memory was short: no more is put in, and an error is set */
} Text;

static void put_text(Text *text, const char *from, size_t size) {
    if (text->size + size > text->room) {
        size_t room = 2 * (text->size + size) + 512;
        char *more = text->failed ? NULL : PyMem_Realloc(text->at, room);
        if (more == NULL) {
            if (!text->failed) PyErr_NoMemory();
            text->failed = 1;
            return;
        }
        text->at = more;
        text->room = room;
    }
    memcpy(text->at + text->size, from, size);
    text->size += size;
}

#define PUT(text, literal) put_text(text, literal, sizeof(literal) - 1)

static void put_number(Text *text, int64_t number) {
    char digits[20];
    size_t at = sizeof digits;
    uint64_t rest = number < 0 ? 0 - (uint64_t)number : (uint64_t)number;
    do digits[--at] = (char)('0' + rest % 10);
    while (rest /= 10);
    if (number < 0) digits[--at] = '-';
    put_text(text, digits + at, sizeof digits - at);
}

/* The bytes of a Python bytes object from `skip` on, as hexadecimal digits. */
static int put_hex(Text *text, PyObject *bytes, Py_ssize_t skip) {
    char *from, pair[2];
    Py_ssize_t size;
    if (bytes == NULL || PyBytes_AsStringAndSize(bytes, &from, &size) < 0) return FAILED;
    for (Py_ssize_t at = skip; at < size; at++) {
        pair[0] = "0123456789abcdef"[(uint8_t)from[at] >> 4];
        pair[1] = "0123456789abcdef"[(uint8_t)from[at] & 15];
        put_text(text, pair, 2);
    }
    return TAKEN;
}

static int put_str(Text *text, PyObject *str) {
    Py_ssize_t size;
    const char *from = str == NULL ? NULL : PyUnicode_AsUTF8AndSize(str, &size);
    if (from == NULL) return FAILED;
    put_text(text, from, (size_t)size);
    return TAKEN;
}

/* What is the same for all spans; borrowed. */
typedef struct {
    long long mg, square_ppm, lsn, ordinal;
    int with_dram, encode;
    double intensity_g;
    PyObject *prefixes, *texts, *parts[4]; /* parts: gas, basis, bound and method, of the line */
    PyObject *columns[4];                      /* cpu and dram, own and of descendants */
    PyObject *parents, *labels, *rows, *origins, *extras, *runs;
    PyObject *names, *name, *run_texts;
} Constants;

/* The texts of `energy.scope`, as scopes.LABELS has them. */
static const char *const LABELS[] = {"host", "process", "container", "pod", "span"};
enum { LABEL_COUNT = sizeof LABELS / sizeof *LABELS };

typedef struct {
    int64_t start, end, uj;
} Tick;

typedef struct {
    Tick *items;
    Py_ssize_t count;
    const Tick *last; /* where the last span began */
} Ticks;

/* The figures of one span: energy in uJ, carbon and alignment error in ug, times in ns. */
typedef struct {
    int64_t start, end, cpu, dram, total, exclusive, node;
    int64_t ug, exclusive_ug, align, lower, upper;
} Figures;

/* Rows of the store as (start, end, uJ of all pots), in order. */
static int read_ticks(PyObject *list, Ticks *ticks) {
    ticks->count = PyList_Size(list);
    ticks->items = PyMem_Calloc((size_t)ticks->count + 1, sizeof *ticks->items);
    if (ticks->items == NULL) {
        PyErr_NoMemory();
        return FAILED;
    }
    for (Py_ssize_t at = 0; at < ticks->count; at++) {
        PyObject *row = PyList_GetItem(list, at);
        Tick *tick = &ticks->items[at];
        int64_t *parts[3] = {&tick->start, &tick->end, &tick->uj};
        for (int part = 0; part < 3; part++) {
            int status = read_integer(PyTuple_GetItem(row, part), parts[part]);
            if (status != TAKEN) return status;
        }
        if (tick->end <= tick->start || tick->uj < 0 || tick->uj >= EXACT) return REFUSED;
    }
    return TAKEN;
}

/* The first tick that ends after an instant; NULL if there is none, or the instant is before it. */
static const Tick *tick_at(const Ticks *ticks, int64_t instant) {
    Py_ssize_t low = 0, high = ticks->count;
    while (low < high) {
        Py_ssize_t middle = low + (high - low) / 2;
        if (ticks->items[middle].end <= instant) low = middle + 1;
        else high = middle;
    }
    return low < ticks->count && ticks->items[low].start <= instant ? &ticks->items[low] : NULL;
}

/* `uj` x mg/kWh in ug, halves to even; -1 where that is beyond what is certain. */
static int64_t carbon(int64_t uj, int64_t mg) {
    Wide product = (Wide)uj * mg, whole = product / UJ_MG_PER_UG_KWH;
    int64_t rest = (int64_t)(product % UJ_MG_PER_UG_KWH);
    if (rest > UJ_MG_PER_UG_KWH / 2 || (rest == UJ_MG_PER_UG_KWH / 2 && whole & 1)) whole++;
    return whole < MAX_UG ? (int64_t)whole : -1;
}

/* The part of a tick's energy before an instant in it. */
static int64_t spent(const Tick *tick, int64_t instant) {
    return (int64_t)((Wide)tick->uj * (instant - tick->start) / (tick->end - tick->start));
}

/* How far a span's edge lies from the edges of its tick: (width - inside) x inside / width. */
static Wide edge(const Tick *tick, int64_t inside) {
    int64_t width = tick->end - tick->start;
    return (Wide)(width - inside) * inside / width;
}

/* What the node spent in the span's time, and how much of its energy hangs on its edges (Joiner.alignment_uj), into
   `node` and `off`. Times that no ticks cover are refused. */
static int measure(Ticks *ticks, Figures *of, int64_t *off) {
    *off = of->node = 0;
    if (of->start == of->end) return TAKEN; /* it may stand at the very end, where no tick is */
    const Tick *first = ticks->last;
    if (first == NULL || of->start < first->start || of->start >= first->end) first = tick_at(ticks, of->start);
    if (first == NULL) return REFUSED;
    ticks->last = first;
    int64_t width = first->end - first->start, duration = of->end - of->start;
    if (of->end <= first->end) {
        *off = (int64_t)((Wide)of->total * (width - duration) / width);
        of->node = spent(first, of->end) - spent(first, of->start);
        return TAKEN;
    }
    const Tick *last = tick_at(ticks, of->end - 1);
    if (last == NULL) return REFUSED;
    Wide edges = edge(first, first->end - of->start) + edge(last, of->end - last->start);
    *off = (int64_t)((Wide)of->total * edges / duration);
    of->node = first->uj - spent(first, of->start) + spent(last, of->end);
    for (const Tick *tick = first + 1; tick < last && of->node < EXACT; tick++) of->node += tick->uj;
    return of->node < EXACT ? TAKEN : REFUSED;
}

/* The root of a number, rounded down. */
static uint64_t root(uint64_t number) {
    if (number < 2) return number;
    uint64_t guess = (uint64_t)1 << 32, next;
    while (guess / 2 > 0 && (guess / 2) * (guess / 2) > number) guess /= 2;
    for (next = (guess + number / guess) / 2; next < guess; next = (guess + number / guess) / 2) guess = next;
    return guess;
}

/* Bounds around the carbon: `uncertainty._bounds`. The root over PPM is the root of the square over PPM squared. */
static int bound(const Constants *what, Figures *of) {
    Wide square = (Wide)what->square_ppm * of->ug * of->ug + (Wide)PPM * PPM * of->align * of->align;
    Wide scaled = square > 0 ? (square - 1) / ((Wide)PPM * PPM) : 0;
    if (scaled >> 62) return REFUSED;
    int64_t half = square > 0 ? (int64_t)root((uint64_t)scaled) + 1 : 0;
    of->lower = of->ug > half ? of->ug - half : 0;
    of->upper = of->ug + half;
    return TAKEN;
}

/* All figures of the span at `index`. */
static int work_out(const Constants *what, PyObject *row, Py_ssize_t index, Ticks *ticks, Figures *of) {
    int64_t parts[4] = {0}, off;
    int status = read_integer(PyTuple_GetItem(row, 4), &of->start);
    if (status == TAKEN) status = read_integer(PyTuple_GetItem(row, 5), &of->end);
    for (int at = 0; status == TAKEN && at < (what->with_dram ? 4 : 2); at++) {
        status = read_integer(PyList_GetItem(what->columns[at], index), &parts[at]);
        if (status == TAKEN && (parts[at] < 0 || parts[at] >= EXACT / 4)) status = REFUSED;
    }
    if (status != TAKEN) return status;
    of->cpu = parts[0] + parts[1];
    of->dram = parts[2] + parts[3];
    of->total = of->cpu + of->dram;
    of->exclusive = parts[0] + parts[2];
    if (of->start < 0 || of->end < of->start || of->end - of->start >= EXACT) return REFUSED;
    status = measure(ticks, of, &off);
    if (status != TAKEN) return status;
    of->ug = carbon(of->total, what->mg);
    of->exclusive_ug = carbon(of->exclusive, what->mg);
    of->align = off < 0 ? -1 : carbon(off, what->mg);
    return of->ug < 0 || of->exclusive_ug < 0 || of->align < 0 ? REFUSED : bound(what, of);
}

/* The attributes a span gains: doubles by their prefixes, then the texts of its scope. */
static PyObject *attributes_of(const Constants *what, const Figures *of, int label, Text *text) {
    const double uj = 1e6, ns = 1e9;
    double values[MAX_DOUBLES];
    int count = 0, ratio_at;
    if (!what->encode) return PyBytes_FromStringAndSize("", 0);
    values[count++] = (double)of->cpu / uj;
    if (what->with_dram) values[count++] = (double)of->dram / uj;
    values[count++] = (double)of->total / uj;
    ratio_at = count;
    values[count++] = of->total < of->node ? (double)of->total / (double)of->node : 1.0;
    values[count++] = (double)(of->end - of->start) / ns;
    values[count++] = (double)of->ug / uj;
    values[count++] = (double)of->lower / uj;
    values[count++] = (double)of->upper / uj;
    values[count++] = what->intensity_g;
    text->size = 0;
    for (int at = 0; at < count; at++) {
        PyObject *prefix = PyTuple_GetItem(what->prefixes, at);
        char *bytes, little[8];
        Py_ssize_t size;
        uint64_t bits;
        if (prefix == NULL || PyBytes_AsStringAndSize(prefix, &bytes, &size) < 0) return NULL;
        if (at == ratio_at && of->node == 0) continue;
        memcpy(&bits, &values[at], sizeof bits);
        for (int byte = 0; byte < 8; byte++) little[byte] = (char)(bits >> (8 * byte) & 0xFF);
        put_text(text, bytes, (size_t)size);
        put_text(text, little, 8);
    }
    char *said;
    Py_ssize_t length;
    if (PyBytes_AsStringAndSize(PyTuple_GetItem(what->texts, label), &said, &length) < 0) return NULL;
    put_text(text, said, (size_t)length);
    return text->failed ? NULL : PyBytes_FromStringAndSize(text->at, (Py_ssize_t)text->size);
}

/* Name and node as a line has them: a new reference to a str. */
static PyObject *name_text(const Constants *what, PyObject *row, PyObject *extra) {
    PyObject *name = PyTuple_GetItem(row, 0), *made, *text;
    int extras = extra == NULL ? -1 : PyObject_IsTrue(extra);
    if (name == NULL || extras < 0) return NULL;
    PyObject *known = PyDict_GetItemWithError(what->names, name);
    if (known == NULL && PyErr_Occurred()) return NULL;
    if (known != NULL && !extras) {
        made = known;
        Py_INCREF(made);
    } else {
        made = PyObject_CallFunctionObjArgs(what->name, name, extra, NULL);
    }
    text = made == NULL ? NULL : PyTuple_GetItem(made, 0);
    Py_XINCREF(text);
    Py_XDECREF(made);
    return text;
}

/* The line up to where `prev_hash` stands, its keys in the order of RFC 8785. */
static int put_before(const Constants *what, const Figures *of, PyObject *row, Py_ssize_t index, int label, Text *text) {
    int64_t origin;
    char *parent;
    Py_ssize_t parent_size;
    int status = read_integer(PyList_GetItem(what->origins, index), &origin);
    if (status != TAKEN) return status;
    PyObject *key = PyList_GetItem(what->parents, index);
    if (key == NULL || PyBytes_AsStringAndSize(key, &parent, &parent_size) < 0) return FAILED;
    PyObject *name = name_text(what, row, PyList_GetItem(what->extras, index));
    if (name == NULL) return FAILED;
    PUT(text, "{\"carbon\":{\"exclusive_ug\":");
    put_number(text, of->exclusive_ug);
    PUT(text, ",");
    status = put_str(text, what->parts[0]);
    PUT(text, "\"lower_ug\":");
    put_number(text, of->lower);
    PUT(text, ",");
    if (status == TAKEN) status = put_str(text, what->parts[1]);
    PUT(text, "\"ug\":");
    put_number(text, of->ug);
    PUT(text, ",");
    if (status == TAKEN) status = put_str(text, what->parts[2]);
    PUT(text, "\"upper_ug\":");
    put_number(text, of->upper);
    PUT(text, "},\"end_ns\":\"");
    put_number(text, of->end);
    PUT(text, "\",\"energy\":{\"cpu_uj\":");
    put_number(text, of->cpu);
    if (what->with_dram) {
        PUT(text, ",\"dram_uj\":");
        put_number(text, of->dram);
    }
    PUT(text, ",\"exclusive_uj\":");
    put_number(text, of->exclusive);
    PUT(text, ",");
    if (status == TAKEN) status = put_str(text, what->parts[3]);
    PUT(text, "\"scope\":\"");
    put_text(text, LABELS[label], strlen(LABELS[label]));
    PUT(text, "\",\"total_uj\":");
    put_number(text, of->total);
    PUT(text, "},\"kind\":\"span\",");
    if (status == TAKEN) status = put_str(text, name);
    Py_DECREF(name);
    PUT(text, "\"origin\":");
    put_number(text, origin);
    if (parent_size > 0) {
        PUT(text, ",\"parent_span_id\":\"");
        if (status == TAKEN) status = put_hex(text, key, 16);
        PUT(text, "\"");
    }
    PUT(text, ",\"pos\":[");
    put_number(text, what->lsn);
    PUT(text, ",");
    put_number(text, what->ordinal);
    PUT(text, "],");
    return status;
}

/* The line from behind `seq`. */
static int put_after(const Figures *of, PyObject *row, Text *text) {
    int64_t code;
    PUT(text, "\"span_id\":\"");
    int status = put_hex(text, PyTuple_GetItem(row, 2), 0);
    PUT(text, "\",\"start_ns\":\"");
    put_number(text, of->start);
    if (status == TAKEN) status = read_integer(PyTuple_GetItem(row, 6), &code);
    if (status != TAKEN) return status;
    if (code == 1) PUT(text, "\",\"status\":\"ok\",\"trace_id\":\"");
    else if (code == 2) PUT(text, "\",\"status\":\"error\",\"trace_id\":\"");
    else PUT(text, "\",\"status\":\"unset\",\"trace_id\":\"");
    status = put_hex(text, PyTuple_GetItem(row, 1), 0);
    PUT(text, "\"}");
    return status;
}

/* What has been put together as a str. */
static PyObject *str_of(const Text *text) {
    return text->failed ? NULL : PyUnicode_FromStringAndSize(text->at, (Py_ssize_t)text->size);
}

/* Append a new reference, which may be NULL after an error. */
static int append(PyObject *list, PyObject *value) {
    int status = value == NULL ? -1 : PyList_Append(list, value);
    Py_XDECREF(value);
    return status < 0 ? FAILED : TAKEN;
}

/* Everything of one span onto the four lists: lines, attributes, carbon, alignment error. */
static int join_span(const Constants *what, Py_ssize_t index, Ticks *ticks, Text *text, PyObject *lists[4]) {
    Figures of;
    int64_t label;
    PyObject *row = PyList_GetItem(what->rows, index), *run = PyList_GetItem(what->runs, index);
    if (row == NULL || run == NULL) return FAILED;
    int status = work_out(what, row, index, ticks, &of);
    if (status == TAKEN) status = read_integer(PyList_GetItem(what->labels, index), &label);
    if (status == TAKEN && (label < 0 || label >= LABEL_COUNT)) status = REFUSED;
    if (status != TAKEN) return status;
    if (append(lists[1], attributes_of(what, &of, (int)label, text)) != TAKEN) return FAILED;
    text->size = 0;
    status = put_before(what, &of, row, index, (int)label, text);
    if (status != TAKEN) return status;
    PyObject *run_text = PyDict_GetItemWithError(what->run_texts, run);
    PyObject *before = run_text == NULL ? NULL : str_of(text);
    text->size = 0;
    status = before == NULL ? (PyErr_Occurred() ? FAILED : REFUSED) : put_after(&of, row, text);
    PyObject *after = status == TAKEN ? str_of(text) : NULL;
    if (status == TAKEN && after == NULL) status = FAILED;
    if (status == TAKEN)
        status = append(lists[0], Py_BuildValue("(LLOOO)", what->lsn, what->ordinal, before, run_text, after));
    Py_XDECREF(before);
    Py_XDECREF(after);
    if (status == TAKEN) status = append(lists[2], PyLong_FromLongLong(of.exclusive_ug));
    return status == TAKEN ? append(lists[3], PyLong_FromLongLong(of.align)) : status;
}

/* join(what, columns, ticks, chosen, names, name, run_texts, lsn, ordinal): see _native.pyi. */
PyObject *native_join(PyObject *self, PyObject *args) {
    (void)self;
    Constants what = {0};
    PyObject *tick_list, *chosen, *lists[4] = {NULL}, *result = NULL;
    if (!PyArg_ParseTuple(args, "(LLppdO!O!UUUU)(O!O!O!O!O!O!O!O!O!O!)O!O!O!OO!LL", &what.mg, &what.square_ppm,
                          &what.with_dram, &what.encode, &what.intensity_g, &PyTuple_Type, &what.prefixes,
                          &PyTuple_Type, &what.texts, &what.parts[0], &what.parts[1], &what.parts[2],
                          &what.parts[3], &PyList_Type, &what.columns[0], &PyList_Type, &what.columns[1], &PyList_Type,
                          &what.columns[2], &PyList_Type, &what.columns[3], &PyList_Type, &what.parents, &PyList_Type,
                          &what.labels, &PyList_Type, &what.rows, &PyList_Type, &what.origins, &PyList_Type,
                          &what.extras, &PyList_Type, &what.runs, &PyList_Type, &tick_list, &PyList_Type, &chosen,
                          &PyDict_Type, &what.names, &what.name, &PyDict_Type, &what.run_texts, &what.lsn,
                          &what.ordinal))
        return NULL;
    Ticks ticks = {0};
    Text text = {0};
    int64_t *indices = NULL;
    Py_ssize_t count = PyList_Size(chosen);
    int status = what.mg < 0 || what.mg >= MAX_UG || what.square_ppm < 0 || what.square_ppm >= MAX_UG ? REFUSED : TAKEN;
    for (int at = 0; status == TAKEN && at < 4; at++)
        if ((lists[at] = PyList_New(0)) == NULL) status = FAILED;
    if (status == TAKEN) status = read_ticks(tick_list, &ticks);
    if (status == TAKEN) status = read_column(chosen, count, &indices);
    for (Py_ssize_t at = 0; status == TAKEN && at < count; at++, what.ordinal++)
        status = indices[at] < 0 ? REFUSED : join_span(&what, (Py_ssize_t)indices[at], &ticks, &text, lists);
    if (status == TAKEN) result = PyTuple_Pack(4, lists[0], lists[1], lists[2], lists[3]);
    for (int at = 0; at < 4; at++) Py_XDECREF(lists[at]);
    PyMem_Free(indices);
    PyMem_Free(ticks.items);
    PyMem_Free(text.at);
    if (status == REFUSED) Py_RETURN_NONE;
    return result;
}
