/* The time in which a span is open and no descendant of it is; the procedure is that of innermost.py. */

#include "_native.h"

enum { WORD_BITS = 64, WORD_SHIFT = 6, MAX_LEVELS = 6 };

/* Nobody is innermost since then: read_integer lets no such time pass. */
static const int64_t NEVER = INT64_MIN;

/* A set of places, as bits; a bit of a level above stands for a word below that is not empty. */
typedef struct {
    uint64_t *words[MAX_LEVELS];
    int levels;
} Places;

static int make_places(Places *places, Py_ssize_t count) {
    do {
        count = (count + WORD_BITS - 1) / WORD_BITS;
        if ((places->words[places->levels] = zeroed(count, sizeof(uint64_t))) == NULL) return FAILED;
        places->levels++;
    } while (count > 1);
    return TAKEN;
}

static void put_in(Places *places, int64_t place) {
    for (int level = 0; level < places->levels; level++, place >>= WORD_SHIFT)
        places->words[level][place >> WORD_SHIFT] |= (uint64_t)1 << (place % WORD_BITS);
}

static void take_out(Places *places, int64_t place) {
    for (int level = 0; level < places->levels; level++, place >>= WORD_SHIFT)
        if (places->words[level][place >> WORD_SHIFT] &= ~((uint64_t)1 << (place % WORD_BITS))) break;
}

/* The next place of the set below or above this one, -1 for none. */
static int64_t next_to(const Places *places, int64_t place, int above) {
    for (int level = 0; level < places->levels; level++, place >>= WORD_SHIFT) {
        uint64_t bit = (uint64_t)1 << (place % WORD_BITS), beyond = above ? ~(bit | (bit - 1)) : bit - 1;
        uint64_t found = places->words[level][place >> WORD_SHIFT] & beyond;
        if (!found) continue;
        place >>= WORD_SHIFT;
        for (;;) {
            place = place * WORD_BITS + (above ? __builtin_ctzll(found) : WORD_BITS - 1 - __builtin_clzll(found));
            if (level-- == 0) return place;
            found = places->words[level][place];
        }
    }
    return -1;
}

/* The forest of spans: parents and children by index, -1 for none. Places are in preorder: a span's descendants are at
   the places after its own, to its `last`. */
typedef struct {
    Py_ssize_t count, placed;
    int64_t *starts, *ends, *above, *homes;
    int64_t *first_child, *next_child;
    int64_t *places, *last, *at_place;
    int64_t *since; /* when the span became innermost, or NEVER */
    Boundary *events;
    Places open;
} Forest;

/* Link children to parents in the same home; an index that is no span's is refused. */
static int plant(Forest *forest) {
    for (Py_ssize_t at = 0; at < forest->count; at++) forest->first_child[at] = -1;
    for (Py_ssize_t at = 0; at < forest->count; at++) {
        int64_t parent = forest->above[at];
        if (parent < -1 || parent >= forest->count || parent == at) return REFUSED;
        if (parent >= 0 && forest->homes != NULL && forest->homes[parent] != forest->homes[at])
            parent = forest->above[at] = -1;
        if (parent < 0) continue;
        forest->next_child[at] = forest->first_child[parent];
        forest->first_child[parent] = at;
    }
    return TAKEN;
}

/* Give a root and all below it their places. */
static void place(Forest *forest, int64_t root) {
    int64_t at = root;
    for (;;) {
        forest->at_place[forest->placed] = at;
        forest->places[at] = forest->placed++;
        if (forest->first_child[at] >= 0) {
            at = forest->first_child[at];
            continue;
        }
        forest->last[at] = forest->placed - 1;
        while (at != root && forest->next_child[at] < 0) {
            at = forest->above[at];
            forest->last[at] = forest->placed - 1;
        }
        if (at == root) return;
        at = forest->next_child[at];
    }
}

/* Whether a place is that of a descendant. */
static int holds(const Forest *forest, int64_t index, int64_t place) {
    return place > forest->places[index] && place <= forest->last[index];
}

/* The end of the time since which a span is innermost. */
static int close_piece(Forest *forest, Pieces *pieces, int64_t index, int64_t now) {
    int64_t since = forest->since[index];
    forest->since[index] = NEVER;
    return since == NEVER || since == now ? TAKEN : add_piece(pieces, since, now, index);
}

static int sweep_families(Forest *forest, Py_ssize_t event_count, Pieces *pieces) {
    int status = TAKEN;
    for (Py_ssize_t each = 0; status == TAKEN && each < event_count; each++) {
        int64_t now = forest->events[each].instant, index = forest->events[each].index, at = forest->places[index];
        int64_t before = next_to(&forest->open, at, 0), after = next_to(&forest->open, at, 1);
        int64_t around = before >= 0 && holds(forest, forest->at_place[before], at) ? forest->at_place[before] : -1;
        if (forest->events[each].begins) {
            if (around >= 0) status = close_piece(forest, pieces, around, now);
            put_in(&forest->open, at);
            if (after < 0 || !holds(forest, index, after)) forest->since[index] = now;
        } else {
            status = close_piece(forest, pieces, index, now);
            take_out(&forest->open, at);
            if (around >= 0 && (after < 0 || !holds(forest, around, after))) forest->since[around] = now;
        }
    }
    return status;
}

/* The pieces of all spans; a cycle of parents is refused. */
static int find_pieces(Forest *forest, Pieces *pieces) {
    Py_ssize_t event_count = 0;
    int status = TAKEN;
    for (Py_ssize_t at = 0; at < forest->count; at++)
        if (forest->ends[at] < forest->starts[at]) return REFUSED;
        else if (forest->above[at] < 0) place(forest, at);
    if (forest->placed < forest->count) return REFUSED;
    for (Py_ssize_t at = 0; status == TAKEN && at < forest->count; at++) {
        int alone = forest->above[at] < 0 && forest->first_child[at] < 0;
        forest->since[at] = NEVER;
        if (alone || forest->ends[at] == forest->starts[at]) { /* of no family, or without duration */
            status = add_piece(pieces, forest->starts[at], forest->ends[at], at);
            continue;
        }
        forest->events[event_count++] = (Boundary){forest->starts[at], (int32_t)at, 1};
        forest->events[event_count++] = (Boundary){forest->ends[at], (int32_t)at, 0};
    }
    if (status != TAKEN) return status;
    qsort(forest->events, (size_t)event_count, sizeof *forest->events, by_boundary);
    return sweep_families(forest, event_count, pieces);
}

/* innermost(starts, ends, above, homes): the pieces, packed; see _native.pyi. */
PyObject *native_innermost(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *starts, *ends, *above, *homes, *result = NULL;
    if (!PyArg_ParseTuple(args, "O!O!O!O", &PyList_Type, &starts, &PyList_Type, &ends, &PyList_Type, &above, &homes))
        return NULL;
    Py_ssize_t count = PyList_Size(starts);
    Forest forest = {.count = count};
    Pieces pieces = {0};
    int status = count < INT32_MAX ? read_column(starts, count, &forest.starts) : REFUSED;
    if (status == TAKEN) status = read_column(ends, count, &forest.ends);
    if (status == TAKEN) status = read_column(above, count, &forest.above);
    if (status == TAKEN && homes != Py_None) status = read_column(homes, count, &forest.homes);
    int64_t **made[] = {&forest.first_child, &forest.next_child, &forest.places,
                        &forest.last,        &forest.at_place,   &forest.since};
    for (size_t at = 0; status == TAKEN && at < sizeof made / sizeof *made; at++)
        if ((*made[at] = zeroed(count, sizeof **made[at])) == NULL) status = FAILED;
    if (status == TAKEN && (forest.events = zeroed(2 * count, sizeof *forest.events)) == NULL) status = FAILED;
    if (status == TAKEN) status = make_places(&forest.open, count);
    if (status == TAKEN) status = plant(&forest);
    if (status == TAKEN) status = find_pieces(&forest, &pieces);
    if (status == TAKEN)
        result = PyBytes_FromStringAndSize((const char *)pieces.items, pieces.count * (Py_ssize_t)sizeof(Piece));
    for (int level = 0; level < MAX_LEVELS; level++) PyMem_Free(forest.open.words[level]);
    void *held[] = {forest.starts,     forest.ends,   forest.above, forest.homes,    forest.first_child,
                    forest.next_child, forest.places, forest.last,  forest.at_place, forest.since,
                    forest.events,     pieces.items};
    for (size_t at = 0; at < sizeof held / sizeof *held; at++) PyMem_Free(held[at]);
    if (status == REFUSED) Py_RETURN_NONE;
    return result;
}
