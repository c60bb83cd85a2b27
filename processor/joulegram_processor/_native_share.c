/* The shares of spans that say their CPU time, beside those that do not and those that are not settled yet. The procedure and its steps are those of
   attribution_cpu.py. Below these limits nothing that is kept passes 127 bits, else it is refused; levels may wrap, as only
   their differences count, and those are no more than the energy there is. */

#include "_native.h"

static const int64_t MAX_UJ = (int64_t)1 << 44, MAX_WIDTH = (int64_t)1 << 40, MAX_WEIGHTS = (int64_t)1 << 48;
enum { FINE_BITS = 32 };

__extension__ typedef unsigned __int128 Level;

typedef struct {
    int64_t start, end, whole, available, below;
} Slab;

/* What stands in place of a weight: a span that says no CPU time, and one that does and is innermost. */
enum { NO_WEIGHT = -2, STAND_BY = -1 };

/* In place of a place: the span has its part, and nobody asked for it. */
enum { BESIDE = -1 };

/* A boundary of a part. */
typedef struct {
    int64_t instant, weight;
    int32_t place, begins;
} Event;

typedef struct {
    Slab *slabs;
    Event *events;
    int32_t *places; /* of a span's index in the order asked for, -1 where it is not in it */
    Level *fine;     /* what each has, by place */
    Py_ssize_t slab_count, event_count, place_count, index_count;
} Work;

static int read_at(PyObject *tuple, Py_ssize_t at, int64_t *value) { return read_integer(PyTuple_GetItem(tuple, at), value); }

/* Slabs as (start, end, (uJ by kind), (uJ available by kind), (uJ of descendants by kind)). */
static int read_slabs(PyObject *list, int kind, Work *work) {
    Wide sum = 0;
    work->slab_count = PyList_Size(list);
    if ((work->slabs = zeroed(work->slab_count, sizeof *work->slabs)) == NULL) return FAILED;
    for (Py_ssize_t at = 0; at < work->slab_count; at++) {
        PyObject *item = PyList_GetItem(list, at);
        Slab *slab = &work->slabs[at];
        int status = read_at(item, 0, &slab->start);
        if (status == TAKEN) status = read_at(item, 1, &slab->end);
        if (status == TAKEN) status = read_at(PyTuple_GetItem(item, 2), kind, &slab->whole);
        if (status == TAKEN) status = read_at(PyTuple_GetItem(item, 3), kind, &slab->available);
        if (status == TAKEN) status = read_at(PyTuple_GetItem(item, 4), kind, &slab->below);
        if (status != TAKEN) return status;
        sum += slab->available;
        if (slab->whole < 0 || slab->whole >= MAX_UJ || slab->available < 0 || slab->available >= MAX_UJ) return REFUSED;
        if (slab->below < 0 || slab->below >= MAX_UJ) return REFUSED;
        if (slab->end <= slab->start || slab->end - slab->start >= MAX_WIDTH || sum >= (Wide)1 << 60) return REFUSED;
    }
    return TAKEN;
}

/* Where each span of the order stands in it. */
static int read_order(PyObject *list, Work *work) {
    int64_t *order = NULL;
    work->place_count = PyList_Size(list);
    int status = work->place_count < INT32_MAX ? read_column(list, work->place_count, &order) : REFUSED;
    for (Py_ssize_t at = 0; status == TAKEN && at < work->place_count; at++) {
        if (order[at] < 0 || order[at] >= INT32_MAX) status = REFUSED;
        else if (order[at] >= work->index_count) work->index_count = (Py_ssize_t)order[at] + 1;
    }
    if (status == TAKEN && (work->places = zeroed(work->index_count, sizeof *work->places)) == NULL) status = FAILED;
    if (status == TAKEN && (work->fine = zeroed(work->place_count, sizeof *work->fine)) == NULL) status = FAILED;
    if (status == TAKEN) {
        for (Py_ssize_t at = 0; at < work->index_count; at++) work->places[at] = -1;
        for (Py_ssize_t at = 0; at < work->place_count; at++) work->places[order[at]] = (int32_t)at;
    }
    PyMem_Free(order);
    return status;
}

static int by_instant(const void *first, const void *second) {
    const Event *a = first, *b = second;
    return (a->instant > b->instant) - (a->instant < b->instant);
}

/* Parts as (start, end, index, weight or None), each as two events; `beside` they are nobody's who asked. */
static int read_parts(PyObject *list, int beside, Work *work) {
    Py_ssize_t count = PyList_Size(list);
    for (Py_ssize_t at = 0; at < count; at++) {
        PyObject *part = PyList_GetItem(list, at), *weight = PyTuple_GetItem(part, 3);
        int64_t start, end, index, known = NO_WEIGHT;
        int status = read_at(part, 0, &start);
        if (status == TAKEN) status = read_at(part, 1, &end);
        if (status == TAKEN) status = read_at(part, 2, &index);
        if (status == TAKEN && weight != Py_None) {
            status = read_integer(weight, &known);
            if (status == TAKEN && (known < STAND_BY || known > (int64_t)1 << FINE_BITS)) status = REFUSED;
        }
        if (status != TAKEN) return status;
        if (end <= start) return REFUSED;
        if (!beside && (index < 0 || index >= work->index_count || work->places[index] < 0)) return REFUSED;
        int32_t place = beside ? BESIDE : work->places[index];
        work->events[work->event_count++] = (Event){start, known, place, 1};
        work->events[work->event_count++] = (Event){end, known, place, 0};
    }
    return TAKEN;
}

static int read_all_parts(PyObject *parts, PyObject *beside, Work *work) {
    Py_ssize_t count = PyList_Size(parts) + PyList_Size(beside);
    if ((work->events = zeroed(2 * count, sizeof *work->events)) == NULL) return FAILED;
    int status = read_parts(parts, 0, work);
    if (status == TAKEN) status = read_parts(beside, 1, work);
    if (status == TAKEN) qsort(work->events, (size_t)work->event_count, sizeof *work->events, by_instant);
    return status;
}

/* Of one kind of part: what is open, what of that was asked for, and what each unit has had since the beginning. */
typedef struct {
    Level level;
    int64_t open, mine;
} Sum;

typedef struct {
    Sum weights, others, waiting;
} Sweep;

static void step(Sweep *sweep, const Event *event, Work *work) {
    int64_t weight = event->weight >= 0 ? event->weight : 1;
    Sum *sum = event->weight == NO_WEIGHT ? &sweep->others : event->weight == STAND_BY ? &sweep->waiting : &sweep->weights;
    int64_t change = event->begins ? weight : -weight;
    sum->open += change;
    if (event->place == BESIDE) return;
    sum->mine += change;
    Level had = event->weight >= 0 ? sum->level * (Level)weight : sum->level << FINE_BITS;
    work->fine[event->place] += event->begins ? (Level)0 - had : had;
}

/* Each of those open has this much more; what those who asked have of it. */
static Wide each_gets(Sum *sum, Wide more) {
    sum->level += (Level)more;
    return more * sum->mine;
}

/* Step 3: of what is `left`, what is given to those who asked. */
static Wide give(Sweep *sweep, Wide spent, Wide left, Wide below) {
    Wide given = 0;
    Sum *weights = &sweep->weights;
    if (weights->open) {
        Wide wanted = (spent * weights->open) >> FINE_BITS;
        if (wanted < left) {
            given = each_gets(weights, spent) >> FINE_BITS;
            left -= wanted;
        } else {
            weights->level += (Level)((left << FINE_BITS) / weights->open);
            given = left * weights->mine / weights->open;
            left = 0;
        }
    }
    if (sweep->others.open) given += each_gets(&sweep->others, left / sweep->others.open);
    else if (sweep->waiting.open) given += each_gets(&sweep->waiting, (left < below ? left : below) / sweep->waiting.open);
    return given;
}

/* Steps 3 and 4: fills `fine` and the list of what was given by slab; the whole of it, or -1 with an error set or not. */
static int64_t sweep_slabs(Work *work, PyObject *given, int *status) {
    Sweep sweep = {0};
    Wide running = 0;
    const Wide half = (Wide)1 << (FINE_BITS - 1);
    int64_t whole_given = 0;
    Py_ssize_t at = 0;
    *status = TAKEN;
    for (Py_ssize_t each = 0; each < work->slab_count; each++) {
        const Slab *slab = &work->slabs[each];
        const Wide width = slab->end - slab->start;
        const Wide ends[3] = {(Wide)slab->whole << FINE_BITS, (Wide)slab->available << FINE_BITS,
                              (Wide)slab->below << FINE_BITS};
        Wide until[3] = {0}, parts[3];
        for (int64_t now = slab->start; now < slab->end;) {
            while (at < work->event_count && work->events[at].instant <= now) step(&sweep, &work->events[at++], work);
            if (sweep.weights.open >= MAX_WEIGHTS) {
                *status = REFUSED;
                return -1;
            }
            now = at < work->event_count && work->events[at].instant < slab->end ? work->events[at].instant : slab->end;
            for (int at_end = 0; at_end < 3; at_end++) {
                Wide reached = ends[at_end] * (now - slab->start) / width;
                parts[at_end] = reached - until[at_end];
                until[at_end] = reached;
            }
            running += give(&sweep, parts[0], parts[1], parts[2]);
        }
        int64_t rounded_up = (int64_t)((running + half) >> FINE_BITS);
        PyObject *part = PyLong_FromLongLong(rounded_up - whole_given);
        if (part == NULL || PyList_Append(given, part) < 0) *status = FAILED;
        Py_XDECREF(part);
        if (*status != TAKEN) return -1;
        whole_given = rounded_up;
    }
    while (at < work->event_count) step(&sweep, &work->events[at++], work);
    return whole_given;
}

/* attribution_cpu._rounded, into a new list. */
static PyObject *rounded(const Work *work, int64_t given) {
    PyObject *gains = PyList_New(0);
    Wide running = 0;
    int64_t before = 0;
    Py_ssize_t final = -1;
    for (Py_ssize_t at = 0; at < work->place_count; at++)
        if ((Wide)work->fine[at] >> FINE_BITS != 0) final = at;
    for (Py_ssize_t at = 0; gains != NULL && at < work->place_count; at++) {
        running += (Wide)work->fine[at] >> FINE_BITS;
        int64_t whole = at == final ? given : (int64_t)(running >> FINE_BITS);
        PyObject *part = PyLong_FromLongLong(at > final ? 0 : whole - before);
        if (part == NULL || PyList_Append(gains, part) < 0) Py_CLEAR(gains);
        Py_XDECREF(part);
        before = whole;
    }
    return gains;
}

/* share(slabs, parts, order, kind, beside): see _native.pyi. */
PyObject *native_share(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *slabs, *parts, *order, *beside, *given = NULL, *gains = NULL, *result = NULL;
    int kind;
    if (!PyArg_ParseTuple(args, "O!O!O!iO!", &PyList_Type, &slabs, &PyList_Type, &parts, &PyList_Type, &order, &kind,
                          &PyList_Type, &beside))
        return NULL;
    Work work = {0};
    int status = read_slabs(slabs, kind, &work);
    if (status == TAKEN) status = read_order(order, &work);
    if (status == TAKEN) status = read_all_parts(parts, beside, &work);
    if (status == TAKEN && (given = PyList_New(0)) == NULL) status = FAILED;
    int64_t whole = status == TAKEN ? sweep_slabs(&work, given, &status) : 0;
    if (status == TAKEN && (gains = rounded(&work, whole)) != NULL) result = PyTuple_Pack(2, gains, given);
    Py_XDECREF(gains);
    Py_XDECREF(given);
    PyMem_Free(work.slabs);
    PyMem_Free(work.events);
    PyMem_Free(work.places);
    PyMem_Free(work.fine);
    if (status == REFUSED) Py_RETURN_NONE;
    return result;
}
