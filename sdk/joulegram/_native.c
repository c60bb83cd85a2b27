/* The module joulegram._native: `Watch` of cpu_watch.py, which every span of a job calls four times.

   What every span comes by is here: the thread's state, the clocks, and the account of a span that is begun and made
   current on one thread. All else is a call of Python (cpu_account.py, cpu_watch.py), which also says what is right: spans on other threads, contexts
   entered unseen, loops that are not followed, attributes that are not what they should be. Nothing is global: each
   interpreter has its own module, and each thread's state is in the dictionary that the interpreter keeps for it. */

#include "_native.h"

void *native_make(PyTypeObject *type) {
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    return allocate(type, 0);
}

void native_destroy(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    ((inquiry)PyType_GetSlot(type, Py_tp_clear))(self);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF((PyObject *)type);
}

/* -- ThreadState ------------------------------------------------------------------------------------------------ */

static PyMemberDef state_members[] = {
    {"context", T_OBJECT, offsetof(State, context), 0, NULL},
    {"span", T_OBJECT, offsetof(State, span), 0, NULL},
    {"since_ns", T_LONGLONG, offsetof(State, since_ns), 0, NULL},
    {"until_ns", T_LONGLONG, offsetof(State, until_ns), 0, NULL},
    {"ahead_ns", T_LONGLONG, offsetof(State, ahead_ns), 0, NULL},
    {"forks", T_LONGLONG, offsetof(State, forks), READONLY, NULL},
    {"in_step", T_BOOL, offsetof(State, in_step), 0, NULL},
    {"joined_step", T_BOOL, offsetof(State, joined_step), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static int state_traverse(PyObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((State *)self)->context);
    Py_VISIT(((State *)self)->span);
    return 0;
}

static int state_clear(PyObject *self) {
    Py_CLEAR(((State *)self)->context);
    Py_CLEAR(((State *)self)->span);
    return 0;
}

static PyType_Slot state_slots[] = {
    {Py_tp_members, state_members},
    {Py_tp_traverse, state_traverse},
    {Py_tp_clear, state_clear},
    {Py_tp_dealloc, native_destroy},
    {0, NULL},
};

static PyType_Spec state_spec = {
    .name = "joulegram._native.ThreadState",
    .basicsize = sizeof(State),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = state_slots,
};

/* -- the module ------------------------------------------------------------------------------------------------- */

/* VERSION is that of the signatures: native.py takes a module of its own version only. */
static int fill(PyObject *module) {
    Types *types = PyModule_GetState(module);
    types->state = PyType_FromModuleAndSpec(module, &state_spec, NULL);
    types->watch = PyType_FromModuleAndSpec(module, &native_watch_spec, NULL);
    if (types->state == NULL || types->watch == NULL) return -1;
    if (PyModule_AddType(module, (PyTypeObject *)types->watch) < 0) return -1;
    return PyModule_AddIntConstant(module, "VERSION", 2);
}

static int traverse(PyObject *module, visitproc visit, void *arg) {
    Types *types = PyModule_GetState(module);
    Py_VISIT(types->state);
    Py_VISIT(types->watch);
    return 0;
}

static int clear(PyObject *module) {
    Types *types = PyModule_GetState(module);
    Py_CLEAR(types->state);
    Py_CLEAR(types->watch);
    return 0;
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, fill}, {0, NULL}};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "joulegram._native",
    .m_size = sizeof(Types),
    .m_slots = slots,
    .m_traverse = traverse,
    .m_clear = clear,
};

PyMODINIT_FUNC PyInit__native(void) { return PyModuleDef_Init(&definition); }
