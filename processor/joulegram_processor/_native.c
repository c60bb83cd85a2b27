/* The module joulegram_processor._native: the hot loops of the join over bytes and 64-bit integers.

   Every function gives what its Python reference gives, or None where it meets anything it does not know for certain:
   then the caller runs the reference, which also raises the errors. So nothing here decides what is right. */

#include "_native.h"

static PyMethodDef methods[] = {
    {"extract", native_extract, METH_VARARGS, "The selected spans of a trace request, or None; see spans.py."},
    {"holds", native_holds, METH_VARARGS, "Whether bytes hold others; see spans.py."},
    {"innermost", native_innermost, METH_VARARGS, "The pieces in which spans are innermost, or None; see attribution.py."},
    {"sweep", native_sweep, METH_VARARGS, "The energy of one scope's pieces, or None; see attribution.py."},
    {"share", native_share, METH_VARARGS, "The shares of spans that say their CPU time, or None; see attribution_cpu.py."},
    {"join", native_join, METH_VARARGS, "Lines, attributes and figures of a uniform settlement, or None; see join_columns.py."},
    {"splice", native_splice, METH_VARARGS, "A trace request whose spans gain bytes or go, or None; see wire.py."},
    {NULL, NULL, 0, NULL},
};

/* VERSION is that of the functions' signatures: native.py takes a module of its own version only. */
static int fill(PyObject *module) { return PyModule_AddIntConstant(module, "VERSION", 3); }

static PyModuleDef_Slot slots[] = {{Py_mod_exec, fill}, {0, NULL}};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "joulegram_processor._native",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__native(void) { return PyModuleDef_Init(&definition); }
