/* `Watch`: what `cpu_watch.Watch` does, step by step; the Python beside it says why. */

#include "_native.h"

/* What a watch holds, each an owned reference. */
enum {
    KEY, /* under which a context holds its innermost span */
    GET, /* of the context variable */
    SET,
    RESET,
    RUNNING_LOOP,
    WALL, /* clocks of a test, or NULL */
    CPU,
    LEAVE, /* of cpu_account.py and cpu_watch.py */
    ENTER,
    UNSEEN,
    DOUBT,
    CLOSED,
    BEGIN_ANEW,
    GETATTR, /* Python's, which does not raise for what is not there */
    MODULES, /* what is loaded, and the names there of what switches unseen */
    GEVENT,
    TRIO,
    CURIO,
    STATE, /* under which a thread's dictionary holds its state */
    OWNER, /* attributes of a span */
    OWN_NS,
    OTHERS,
    ZERO,
    STATE_TYPE,
    PARTS,
};

typedef struct {
    PyObject_HEAD
    PyObject *parts[PARTS];
    long long short_ns;
} Watch;

#define CALL(watch, part, ...) PyObject_CallFunctionObjArgs((watch)->parts[part], __VA_ARGS__, NULL)

static int is_none(PyObject *object) { return object == NULL || object == Py_None; }

static PyObject *own(PyObject *object) {
    object = object == NULL ? Py_None : object;
    Py_INCREF(object);
    return object;
}

/* Put `value` into a field and let go of what was there, in this order: letting go may run any code. Takes over `value`. */
static void replace(PyObject **field, PyObject *value) {
    PyObject *old = *field;
    *field = value;
    Py_XDECREF(old);
}

/* Call for what it does; -1 with an error set. */
static int done(PyObject *result) {
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

/* -- the thread ------------------------------------------------------------------------------------------------- */

static int is_state(Watch *self, PyObject *object) { return (PyObject *)Py_TYPE(object) == self->parts[STATE_TYPE]; }

static long long *forks(Watch *self) { return &((Types *)PyType_GetModuleState(Py_TYPE((PyObject *)self)))->forks; }

/* A new state for the calling thread. The interpreter's dictionary of the thread keeps it and goes with the thread. */
static State *begin_thread(Watch *self) {
    PyObject *kept = PyThreadState_GetDict();
    State *state = kept == NULL ? (State *)PyErr_NoMemory() : native_make((PyTypeObject *)self->parts[STATE_TYPE]);
    if (state != NULL) state->forks = *forks(self);
    if (state != NULL && PyDict_SetItem(kept, self->parts[STATE], (PyObject *)state) < 0) Py_CLEAR(state);
    return state;
}

/* The calling thread's state; a new reference. */
static State *state_of_thread(Watch *self) {
    PyObject *kept = PyThreadState_GetDict();
    PyObject *found = kept == NULL ? NULL : PyDict_GetItemWithError(kept, self->parts[STATE]);
    if (found != NULL && is_state(self, found)) {
        Py_INCREF(found);
        return (State *)found;
    }
    return PyErr_Occurred() ? NULL : begin_thread(self);
}

static int read_clock(PyObject *test, clockid_t clock, long long *ns) {
    if (test != NULL) {
        PyObject *read = PyObject_CallNoArgs(test);
        *ns = read == NULL ? -1 : PyLong_AsLongLong(read);
        Py_XDECREF(read);
        return PyErr_Occurred() ? -1 : 0;
    }
    struct timespec now;
    if (clock_gettime(clock, &now) != 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    *ns = (long long)now.tv_sec * 1000000000 + now.tv_nsec;
    return 0;
}

/* The thread's CPU time, for which the wall clock stands a while after a reading. */
static int read_now(Watch *self, State *state, long long *now_ns) {
    long long wall_ns;
    if (read_clock(self->parts[WALL], CLOCK_MONOTONIC, &wall_ns) < 0) return -1;
    if (wall_ns < state->until_ns) {
        *now_ns = wall_ns + state->ahead_ns;
        return 0;
    }
    if (read_clock(self->parts[CPU], CLOCK_THREAD_CPUTIME_ID, now_ns) < 0) return -1;
    state->until_ns = wall_ns + self->short_ns;
    state->ahead_ns = *now_ns - wall_ns;
    return 0;
}

/* Whether an event loop that is not followed runs; -1 with an error set. */
static int in_foreign_loop(Watch *self, State *state) {
    if (state->in_step) return 0;
    PyObject *loop = PyObject_CallNoArgs(self->parts[RUNNING_LOOP]);
    int found = loop == NULL ? -1 : loop != Py_None;
    Py_XDECREF(loop);
    return found;
}

/* -- accounts --------------------------------------------------------------------------------------------------- */

/* The innermost span of a context, or None; a new reference. */
static PyObject *innermost(Watch *self, PyObject *context) {
    if (is_none(context)) return own(NULL);
    if (!PyDict_Check(context)) return PyObject_CallMethod(context, "get", "O", self->parts[KEY]);
    PyObject *found = PyDict_GetItemWithError(context, self->parts[KEY]);
    return found == NULL && PyErr_Occurred() ? NULL : own(found);
}

/* The owner of a span's account, None where it has none; a new reference. */
static PyObject *owner_of(Watch *self, PyObject *span) {
    return span == Py_None ? own(NULL) : CALL(self, GETATTR, span, self->parts[OWNER], Py_None);
}

/* What a span has on the thread that began it: 1 and the figure, 0 where it has none, -1 where only Python can tell. */
static int read_own(Watch *self, PyObject *span, long long *own_ns) {
    PyObject *held = PyObject_GetAttr(span, self->parts[OWN_NS]);
    int found = held == Py_None ? 0 : held != NULL && PyLong_CheckExact(held) ? 1 : -1;
    if (found > 0) {
        *own_ns = PyLong_AsLongLong(held);
        if (*own_ns < 0) found = -1;
    }
    Py_XDECREF(held);
    PyErr_Clear();
    return found;
}

/* Until now the thread was in the span. */
static int leave(Watch *self, State *state, PyObject *span, long long now_ns) {
    long long own_ns;
    PyObject *owner = PyObject_GetAttr(span, self->parts[OWNER]);
    if (owner == NULL) PyErr_Clear();
    Py_XDECREF(owner);
    if (owner == (PyObject *)state && read_own(self, span, &own_ns) == 1) {
        if (now_ns <= state->since_ns) return 0;
        PyObject *sum = PyLong_FromLongLong(own_ns + (now_ns - state->since_ns));
        int status = sum == NULL ? -1 : PyObject_SetAttr(span, self->parts[OWN_NS], sum);
        Py_XDECREF(sum);
        return status;
    }
    PyObject *now = PyLong_FromLongLong(now_ns);
    int status = now == NULL ? -1 : done(CALL(self, LEAVE, (PyObject *)state, span, now));
    Py_XDECREF(now);
    return status;
}

/* From now on the thread is in the span, which `owner` began. */
static int enter(Watch *self, State *state, PyObject *span, PyObject *owner) {
    long long own_ns;
    if (owner == (PyObject *)state) {
        int found = read_own(self, span, &own_ns);
        if (found == 1) return 0;
        if (found == 0) return PyObject_SetAttr(span, self->parts[OWN_NS], self->parts[ZERO]);
    }
    return done(CALL(self, ENTER, (PyObject *)state, span, owner));
}

/* The thread goes from one context to another. */
static int change(Watch *self, State *state, PyObject *here, PyObject *there) {
    int status = -1;
    long long now_ns;
    PyObject *before = own(state->span), *after = NULL, *owner = NULL;
    if (!is_none(here) && state->context != here) {
        PyObject *found = innermost(self, here);
        if (found == NULL) goto end;
        replace(&before, CALL(self, UNSEEN, (PyObject *)state, found));
        Py_DECREF(found);
        if (before == NULL) goto end;
    }
    Py_INCREF(there);
    replace(&state->context, there);
    after = innermost(self, there);
    owner = after == NULL ? NULL : owner_of(self, after);
    if (owner == NULL) goto end;
    if (owner == Py_None && before == Py_None) {
        status = 0;
        goto end;
    }
    if (read_now(self, state, &now_ns) < 0) goto end;
    if (before != Py_None && leave(self, state, before, now_ns) < 0) goto end;
    if (owner == Py_None) replace(&after, own(NULL));
    else if (enter(self, state, after, owner) < 0) goto end;
    state->since_ns = now_ns;
    replace(&state->span, after);
    after = NULL;
    status = 0;
end:
    Py_XDECREF(before);
    Py_XDECREF(after);
    Py_XDECREF(owner);
    return status;
}

/* -- what Python calls ------------------------------------------------------------------------------------------ */

static PyObject *watch_state(Watch *self, PyObject *none) {
    (void)none;
    return (PyObject *)state_of_thread(self);
}

static PyObject *watch_forget(Watch *self, PyObject *none) {
    (void)none;
    if (done(PyObject_CallNoArgs(self->parts[BEGIN_ANEW])) < 0) return NULL;
    *forks(self) += 1;
    State *state = begin_thread(self);
    if (state == NULL) return NULL;
    Py_DECREF(state);
    return own(NULL);
}

static PyObject *watch_attach(Watch *self, PyObject *context) {
    PyObject *here = NULL, *token = NULL;
    State *state = state_of_thread(self);
    if (state == NULL) return NULL;
    int doubtful = in_foreign_loop(self, state);
    if (doubtful < 0) goto end;
    if (doubtful && done(CALL(self, DOUBT, (PyObject *)state)) < 0) goto end;
    here = PyObject_CallNoArgs(self->parts[GET]);
    if (here == NULL || change(self, state, here, context) < 0) goto end;
    if (doubtful && done(CALL(self, DOUBT, (PyObject *)state)) < 0) goto end;
    token = CALL(self, SET, context);
end:
    Py_XDECREF(here);
    Py_DECREF(state);
    return token;
}

static PyObject *watch_detach(Watch *self, PyObject *token) {
    PyObject *here = NULL, *there = NULL, *type, *value, *traceback;
    int status = -1;
    State *state = state_of_thread(self);
    if (state == NULL) return NULL;
    int doubtful = in_foreign_loop(self, state);
    if (doubtful < 0 || (doubtful && done(CALL(self, DOUBT, (PyObject *)state)) < 0)) goto end;
    here = PyObject_CallNoArgs(self->parts[GET]);
    if (here == NULL) goto end;
    Py_XDECREF(CALL(self, RESET, token));
    PyErr_Fetch(&type, &value, &traceback);
    there = PyObject_CallNoArgs(self->parts[GET]);
    status = there == NULL ? -1 : change(self, state, here, there);
    if (type != NULL) { /* which of two errors is told matters to nobody */
        PyErr_Restore(type, value, traceback);
        status = -1;
    }
end:
    Py_XDECREF(here);
    Py_XDECREF(there);
    Py_DECREF(state);
    return status < 0 ? NULL : own(NULL);
}

static PyObject *watch_change(Watch *self, PyObject *args) {
    State *state;
    PyObject *here, *there;
    if (!PyArg_ParseTuple(args, "O!OO", self->parts[STATE_TYPE], &state, &here, &there)) return NULL;
    return change(self, state, here, there) < 0 ? NULL : own(NULL);
}

static PyObject *watch_begin(Watch *self, PyObject *span) {
    for (int at = GEVENT; at <= CURIO; at++) {
        int loaded = PyDict_Contains(self->parts[MODULES], self->parts[at]);
        if (loaded != 0) return loaded < 0 ? NULL : own(NULL);
    }
    State *state = state_of_thread(self);
    if (state == NULL) return NULL;
    int status = PyObject_SetAttr(span, self->parts[OWNER], (PyObject *)state);
    Py_DECREF(state);
    if (status < 0 || PyObject_SetAttr(span, self->parts[OWN_NS], Py_None) < 0) return NULL;
    return PyObject_SetAttr(span, self->parts[OTHERS], Py_None) < 0 ? NULL : own(NULL);
}

static PyObject *watch_end(Watch *self, PyObject *span) {
    PyObject *result = NULL, *here = NULL, *others = NULL, *active = NULL;
    PyObject *owner = owner_of(self, span);
    if (is_none(owner)) return owner;
    if ((here = PyObject_CallNoArgs(self->parts[GET])) == NULL) goto end;
    if ((active = innermost(self, here)) == NULL) goto end;
    others = PyObject_GetAttr(span, self->parts[OTHERS]);
    if (others == Py_None && active != span && is_state(self, owner) && ((State *)owner)->span != span &&
        ((State *)owner)->forks == *forks(self))
        result = PyObject_GetAttr(span, self->parts[OWN_NS]);
    if (result == NULL) {
        PyErr_Clear(); /* somebody took it away */
        result = CALL(self, CLOSED, (PyObject *)self, here, span);
    }
end:
    Py_DECREF(owner);
    Py_XDECREF(here);
    Py_XDECREF(active);
    Py_XDECREF(others);
    return result;
}

/* -- the type --------------------------------------------------------------------------------------------------- */

static int traverse(PyObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    for (int at = 0; at < PARTS; at++) Py_VISIT(((Watch *)self)->parts[at]);
    return 0;
}

static int clear(PyObject *self) {
    for (int at = 0; at < PARTS; at++) Py_CLEAR(((Watch *)self)->parts[at]);
    return 0;
}

/* An attribute of a module; a new reference. */
static PyObject *imported(const char *module, const char *name) {
    PyObject *found = PyImport_ImportModule(module);
    PyObject *attribute = found == NULL ? NULL : PyObject_GetAttrString(found, name);
    Py_XDECREF(found);
    return attribute;
}

/* Put a part in its place; 0 where it could not be had. */
static int hold(Watch *self, int part, PyObject *made) {
    self->parts[part] = made;
    return made != NULL;
}

static int fill(Watch *self, Types *types, PyObject *variable) {
    PyObject *short_ns = imported("joulegram.cpu_watch", "SHORT_NS");
    if (short_ns == NULL) return 0;
    self->short_ns = PyLong_AsLongLong(short_ns);
    Py_DECREF(short_ns);
    return !PyErr_Occurred() && hold(self, STATE_TYPE, own(types->state)) &&
           hold(self, GET, PyObject_GetAttrString(variable, "get")) &&
           hold(self, SET, PyObject_GetAttrString(variable, "set")) &&
           hold(self, RESET, PyObject_GetAttrString(variable, "reset")) &&
           hold(self, LEAVE, imported("joulegram.cpu_account", "leave")) &&
           hold(self, ENTER, imported("joulegram.cpu_account", "enter")) &&
           hold(self, UNSEEN, imported("joulegram.cpu_account", "unseen")) &&
           hold(self, DOUBT, imported("joulegram.cpu_account", "doubt")) &&
           hold(self, CLOSED, imported("joulegram.cpu_watch", "closed")) &&
           hold(self, BEGIN_ANEW, imported("joulegram.cpu_account", "begin_anew")) &&
           hold(self, GETATTR, imported("builtins", "getattr")) && hold(self, MODULES, imported("sys", "modules")) &&
           hold(self, GEVENT, PyUnicode_InternFromString("gevent")) &&
           hold(self, TRIO, PyUnicode_InternFromString("trio")) &&
           hold(self, CURIO, PyUnicode_InternFromString("curio")) &&
           hold(self, STATE, PyUnicode_InternFromString("joulegram.ThreadState")) &&
           hold(self, OWNER, PyUnicode_InternFromString("_joulegram_owner")) &&
           hold(self, OWN_NS, PyUnicode_InternFromString("_joulegram_own_ns")) &&
           hold(self, OTHERS, PyUnicode_InternFromString("_joulegram_others")) &&
           hold(self, ZERO, PyLong_FromLong(0));
}

static PyObject *create(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"variable", "key", "running_loop", "wall_ns", "cpu_ns", NULL};
    PyObject *variable, *key, *running_loop, *wall = Py_None, *cpu = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OUO|OO", names, &variable, &key, &running_loop, &wall, &cpu))
        return NULL;
    Watch *self = native_make(type);
    if (self == NULL) return NULL;
    self->parts[KEY] = own(key);
    self->parts[RUNNING_LOOP] = own(running_loop);
    self->parts[WALL] = wall == Py_None ? NULL : own(wall);
    self->parts[CPU] = cpu == Py_None ? NULL : own(cpu);
    if (fill(self, PyType_GetModuleState(type), variable)) return (PyObject *)self;
    Py_DECREF((PyObject *)self);
    return NULL;
}

static PyMethodDef methods[] = {
    {"state", (PyCFunction)watch_state, METH_NOARGS, NULL},
    {"forget", (PyCFunction)watch_forget, METH_NOARGS, NULL},
    {"attach", (PyCFunction)watch_attach, METH_O, NULL},
    {"detach", (PyCFunction)watch_detach, METH_O, NULL},
    {"change", (PyCFunction)watch_change, METH_VARARGS, NULL},
    {"begin", (PyCFunction)watch_begin, METH_O, NULL},
    {"end", (PyCFunction)watch_end, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef members[] = {
    {"key", T_OBJECT, offsetof(Watch, parts) + KEY * sizeof(PyObject *), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_new, create},
    {Py_tp_methods, methods},
    {Py_tp_members, members},
    {Py_tp_traverse, traverse},
    {Py_tp_clear, clear},
    {Py_tp_dealloc, native_destroy},
    {0, NULL},
};

PyType_Spec native_watch_spec = {
    .name = "joulegram._native.Watch",
    .basicsize = sizeof(Watch),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = slots,
};
