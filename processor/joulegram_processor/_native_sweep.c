/* Whose energy it was: the sweep over the pieces in which spans are innermost. The procedure and its steps are those of
   attribution.py. Times are below 2**62 ns and microjoules below 2**60 in all, else it is refused; what
   is multiplied or shifted is 128 bits wide. */

#include "_native.h"

static const int64_t LIMIT = (int64_t)1 << 62;
enum { FINE_BITS = 32 };

typedef struct {
    int64_t start, end;
} Interval;

/* An integer between -LIMIT and LIMIT; REFUSED for anything else, FAILED with an error set. */
int read_integer(PyObject *object, int64_t *value) {
    if (object == NULL) return FAILED;
    *value = PyLong_AsLongLong(object);
    if (*value == -1 && PyErr_Occurred()) {
        if (!PyErr_ExceptionMatches(PyExc_OverflowError)) return FAILED;
        PyErr_Clear();
        return REFUSED;
    }
    return *value > -LIMIT && *value < LIMIT ? TAKEN : REFUSED;
}

/* `count` zeroed elements of a size; NULL with an error set. Free with PyMem_Free. */
void *zeroed(Py_ssize_t count, size_t size) {
    void *made = PyMem_Calloc((size_t)count + 1, size);
    if (made == NULL) PyErr_NoMemory();
    return made;
}

/* The integers of a list of this length into a new array; None, where that may be, as -1. */
int read_column(PyObject *list, Py_ssize_t count, int64_t **out) {
    *out = NULL;
    if (!PyList_Check(list) || PyList_Size(list) != count) return REFUSED;
    if ((*out = zeroed(count, sizeof **out)) == NULL) return FAILED;
    int status = TAKEN;
    for (Py_ssize_t at = 0; status == TAKEN && at < count; at++) {
        PyObject *item = PyList_GetItem(list, at);
        if (item == Py_None) (*out)[at] = -1;
        else status = read_integer(item, &(*out)[at]);
    }
    return status;
}

/* A list of (start, end), sorted and disjoint, into a new array. */
static int read_intervals(PyObject *list, Interval **out, Py_ssize_t *count) {
    *count = PyList_Size(list);
    if (*count < 0 || (*out = zeroed(*count, sizeof **out)) == NULL) return FAILED;
    int status = TAKEN;
    for (Py_ssize_t at = 0; status == TAKEN && at < *count; at++) {
        PyObject *pair = PyList_GetItem(list, at);
        status = read_integer(PyTuple_GetItem(pair, 0), &(*out)[at].start);
        if (status == TAKEN) status = read_integer(PyTuple_GetItem(pair, 1), &(*out)[at].end);
    }
    return status;
}

/* The piece goes behind the others; FAILED with an error set. */
int add_piece(Pieces *pieces, int64_t start, int64_t end, int64_t index) {
    if (pieces->count == pieces->room) {
        Py_ssize_t room = 2 * pieces->room + 256;
        Piece *more = PyMem_Realloc(pieces->items, (size_t)room * sizeof *more);
        if (more == NULL) {
            PyErr_NoMemory();
            return FAILED;
        }
        pieces->items = more;
        pieces->room = room;
    }
    pieces->items[pieces->count++] = (Piece){start, end, index};
    return TAKEN;
}

/* Add what is left of [start, end) outside sorted disjoint intervals, as intervals.subtract does. */
static int add_left(Pieces *pieces, int64_t start, int64_t end, int64_t index, const Interval *taken, Py_ssize_t count) {
    Py_ssize_t low = 0, high = count;
    while (low < high) { /* the first that ends after the start */
        Py_ssize_t middle = low + (high - low) / 2;
        if (taken[middle].end <= start) low = middle + 1;
        else high = middle;
    }
    int status = TAKEN;
    for (; status == TAKEN && start < end && low < count && taken[low].start < end; low++) {
        if (taken[low].start > start) status = add_piece(pieces, start, taken[low].start, index);
        start = taken[low].end;
    }
    return status == TAKEN && start < end ? add_piece(pieces, start, end, index) : status;
}

/* For qsort: boundaries by instant, ends before starts, then by span. */
int by_boundary(const void *first, const void *second) {
    const Boundary *a = first, *b = second;
    if (a->instant != b->instant) return a->instant < b->instant ? -1 : 1;
    if (a->begins != b->begins) return a->begins - b->begins;
    return (a->index > b->index) - (a->index < b->index);
}

/* A row of the store, and its pots by kind. */
typedef struct {
    int64_t start, end, pots[3];
} Tick;

/* Rows as (start, end, cpu, dram, gpu), in order; one that has no width or less than nothing in a pot is refused. */
static int read_ticks(PyObject *list, Tick **out, Py_ssize_t *count) {
    *count = PyList_Size(list);
    if (*count < 0 || (*out = zeroed(*count, sizeof **out)) == NULL) return FAILED;
    Wide sum = 0;
    for (Py_ssize_t at = 0; at < *count; at++) {
        PyObject *row = PyList_GetItem(list, at);
        int64_t *parts[5] = {&(*out)[at].start, &(*out)[at].end, &(*out)[at].pots[0], &(*out)[at].pots[1],
                             &(*out)[at].pots[2]};
        for (int part = 0; part < 5; part++) {
            int status = read_integer(PyTuple_GetItem(row, part), parts[part]);
            if (status != TAKEN) return status;
            if (part >= 2 && *parts[part] < 0) return REFUSED;
            if (part >= 2) sum += *parts[part];
        }
        if ((*out)[at].end <= (*out)[at].start || sum >= (Wide)1 << 60) return REFUSED;
    }
    return TAKEN;
}

typedef struct {
    Py_ssize_t count; /* of spans */
    Boundary *events;
    Py_ssize_t event_count;
    Tick *ticks;
    Py_ssize_t tick_count;
    int32_t *order; /* the spans swept */
    Py_ssize_t order_count;
    Wide *gains; /* of each span, in units of 2**-32 uJ */
} Sweep;

/* attribution._gains for one kind; the whole microjoules swept while any piece was open. */
static int64_t gain(Sweep *sweep, int kind) {
    Wide level = 0, carry = 0;
    int64_t open = 0, swept = 0, last = 0, base = 0, now = 0;
    Py_ssize_t at = 0;
    memset(sweep->gains, 0, (size_t)sweep->count * sizeof *sweep->gains);
    for (Py_ssize_t each = 0; each < sweep->event_count; each++) {
        Boundary *event = &sweep->events[each];
        if (each == 0 || event->instant != event[-1].instant) {
            while (at < sweep->tick_count && sweep->ticks[at].end <= event->instant) base += sweep->ticks[at++].pots[kind];
            now = base;
            if (at < sweep->tick_count && event->instant > sweep->ticks[at].start) {
                Tick *tick = &sweep->ticks[at];
                now += (int64_t)((Wide)tick->pots[kind] * (event->instant - tick->start) / (tick->end - tick->start));
            }
            if (open && now != last) {
                Wide fine = ((Wide)(now - last) << FINE_BITS) + carry;
                swept += now - last;
                level += fine / open;
                carry = fine % open;
            }
            last = now;
        }
        open += event->begins ? 1 : -1;
        sweep->gains[event->index] += event->begins ? -level : level;
    }
    return swept;
}

/* What spans whose pieces start together are ordered by, instead: start, end, id, and where they stood. */
typedef struct {
    int64_t start, end;
    const uint8_t *key;
    Py_ssize_t length;
    int32_t place, index;
} Rank;

static int by_rank(const void *first, const void *second) {
    const Rank *a = first, *b = second;
    if (a->start != b->start) return a->start < b->start ? -1 : 1;
    if (a->end != b->end) return a->end < b->end ? -1 : 1;
    int keys = memcmp(a->key, b->key, (size_t)(a->length < b->length ? a->length : b->length));
    if (keys != 0) return keys;
    if (a->length != b->length) return a->length < b->length ? -1 : 1;
    return a->place - b->place;
}

/* attribution._order: the spans swept, by their first piece, or by rank where any two pieces start together. */
static int put_in_order(Sweep *sweep, PyObject *starts, PyObject *ends, PyObject *keys) {
    uint8_t *met = zeroed(sweep->count, 1);
    if (met == NULL || (sweep->order = zeroed(sweep->count, sizeof *sweep->order)) == NULL) {
        PyMem_Free(met);
        return FAILED;
    }
    int together = 0, any = 0;
    int64_t before = 0;
    for (Py_ssize_t at = 0; at < sweep->event_count; at++) {
        Boundary *event = &sweep->events[at];
        if (!event->begins) continue;
        together |= any && before == event->instant;
        before = event->instant;
        any = 1;
        if (!met[event->index]) sweep->order[sweep->order_count++] = event->index;
        met[event->index] = 1;
    }
    PyMem_Free(met);
    if (!together) return TAKEN;
    Rank *ranks = zeroed(sweep->order_count, sizeof *ranks);
    int status = ranks == NULL ? FAILED : TAKEN;
    for (Py_ssize_t at = 0; status == TAKEN && at < sweep->order_count; at++) {
        Rank *rank = &ranks[at];
        char *key = NULL;
        rank->index = sweep->order[at];
        rank->place = (int32_t)at;
        status = read_integer(PyList_GetItem(starts, rank->index), &rank->start);
        if (status == TAKEN) status = read_integer(PyList_GetItem(ends, rank->index), &rank->end);
        if (status == TAKEN && PyBytes_AsStringAndSize(PyList_GetItem(keys, rank->index), &key, &rank->length) < 0)
            status = FAILED;
        rank->key = (const uint8_t *)key;
    }
    if (status == TAKEN) {
        qsort(ranks, (size_t)sweep->order_count, sizeof *ranks, by_rank);
        for (Py_ssize_t at = 0; at < sweep->order_count; at++) sweep->order[at] = ranks[at].index;
    }
    PyMem_Free(ranks);
    return status;
}

/* attribution._round: each span's whole microjoules into a list that holds 0 for it. */
static int round_off(Sweep *sweep, int64_t swept, PyObject *own) {
    Wide running = 0;
    int64_t given = 0;
    int32_t final = -1;
    for (Py_ssize_t at = 0; at < sweep->order_count; at++)
        if (sweep->gains[sweep->order[at]] != 0) final = sweep->order[at];
    if (final < 0) return swept == 0 ? TAKEN : REFUSED;
    for (Py_ssize_t at = 0; at < sweep->order_count; at++) {
        int32_t index = sweep->order[at];
        running += sweep->gains[index];
        int64_t whole = index == final ? swept : (int64_t)(running >> FINE_BITS);
        if (whole != given) {
            PyObject *part = PyLong_FromLongLong(whole - given);
            if (part == NULL || PyList_SetItem(own, index, part) < 0) return FAILED;
        }
        given = whole;
        if (index == final) break;
    }
    return TAKEN;
}

/* attribution._busy: the time any piece is open, as a new list of (start, end). */
static PyObject *busy(const Sweep *sweep) {
    PyObject *found = PyList_New(0);
    int64_t open = 0, low = 0, high = 0;
    int any = 0;
    for (Py_ssize_t at = 0; found != NULL && at <= sweep->event_count; at++) {
        const Boundary *event = &sweep->events[at];
        int over = at == sweep->event_count;
        if (any && open == 0 && (over || event->instant != high)) {
            PyObject *pair = Py_BuildValue("(LL)", (long long)low, (long long)high);
            if (pair == NULL || PyList_Append(found, pair) < 0) Py_CLEAR(found);
            Py_XDECREF(pair);
            any = 0;
        }
        if (over) break;
        if (!any) low = event->instant;
        any = 1;
        high = event->instant;
        open += event->begins ? 1 : -1;
    }
    return found;
}

/* The pieces of a scope less what is taken, as sorted events; a piece from before `since` is refused. */
static int cut_pieces(Sweep *sweep, const Piece *pieces, Py_ssize_t count, const int64_t *homes, int64_t scope,
                      int64_t since, PyObject *taken_list) {
    Interval *taken = NULL;
    Py_ssize_t taken_count;
    Pieces left = {0};
    int status = read_intervals(taken_list, &taken, &taken_count);
    for (Py_ssize_t at = 0; status == TAKEN && at < count; at++) {
        const Piece *piece = &pieces[at];
        if (piece->index < 0 || piece->index >= sweep->count) status = REFUSED;
        else if (homes != NULL && homes[piece->index] != scope) continue;
        else if (piece->start < since) status = REFUSED;
        else status = add_left(&left, piece->start, piece->end, piece->index, taken, taken_count);
    }
    if (status == TAKEN && (sweep->events = zeroed(2 * left.count, sizeof *sweep->events)) == NULL) status = FAILED;
    for (Py_ssize_t at = 0; status == TAKEN && at < left.count; at++) {
        const Piece *piece = &left.items[at];
        sweep->events[sweep->event_count++] = (Boundary){piece->start, (int32_t)piece->index, 1};
        sweep->events[sweep->event_count++] = (Boundary){piece->end, (int32_t)piece->index, 0};
    }
    if (status == TAKEN) qsort(sweep->events, (size_t)sweep->event_count, sizeof *sweep->events, by_boundary);
    PyMem_Free(left.items);
    PyMem_Free(taken);
    return status;
}

/* sweep(pieces, scope, homes, since, taken, rows, starts, ends, keys, own): see _native.pyi. */
PyObject *native_sweep(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *packed, *homes_list, *taken, *rows, *starts, *ends, *keys, *own[3], *result = NULL;
    long long scope, since;
    if (!PyArg_ParseTuple(args, "SLOLO!O!O!O!O!(O!O!O!)", &packed, &scope, &homes_list, &since, &PyList_Type, &taken,
                          &PyList_Type, &rows, &PyList_Type, &starts, &PyList_Type, &ends, &PyList_Type, &keys,
                          &PyList_Type, &own[0], &PyList_Type, &own[1], &PyList_Type, &own[2]))
        return NULL;
    Sweep sweep = {.count = PyList_Size(starts)};
    int64_t *homes = NULL;
    int status = sweep.count < INT32_MAX ? TAKEN : REFUSED;
    if (status == TAKEN && homes_list != Py_None) status = read_column(homes_list, sweep.count, &homes);
    if (status == TAKEN)
        status = cut_pieces(&sweep, (const Piece *)(const void *)PyBytes_AsString(packed),
                            PyBytes_Size(packed) / (Py_ssize_t)sizeof(Piece), homes, scope, since, taken);
    if (status == TAKEN) status = read_ticks(rows, &sweep.ticks, &sweep.tick_count);
    if (status == TAKEN) status = put_in_order(&sweep, starts, ends, keys);
    if (status == TAKEN && (sweep.gains = zeroed(sweep.count, sizeof *sweep.gains)) == NULL) status = FAILED;
    for (int kind = 0; status == TAKEN && kind < 3; kind++) {
        Py_ssize_t at = 0;
        while (at < sweep.tick_count && sweep.ticks[at].pots[kind] == 0) at++;
        if (at == sweep.tick_count) continue;
        int64_t swept = gain(&sweep, kind);
        if (swept) status = round_off(&sweep, swept, own[kind]);
    }
    if (status == TAKEN) result = busy(&sweep);
    PyMem_Free(homes);
    PyMem_Free(sweep.events);
    PyMem_Free(sweep.ticks);
    PyMem_Free(sweep.order);
    PyMem_Free(sweep.gains);
    if (status == REFUSED) Py_RETURN_NONE;
    return result;
}
