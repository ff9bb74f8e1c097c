/* The Python module, and what the files of the binding share (binding.h). */
#include "python/binding.h"

Py_ssize_t take(PyObject *from, Py_buffer *view, Py_ssize_t itemsize, int writable,
                const char *name) {
    const int flags = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0);
    if (PyObject_GetBuffer(from, view, flags) < 0) {
        view->obj = NULL;
        return -1;
    }
    const Py_ssize_t found = view->itemsize;
    if (itemsize ? found != itemsize : found != 4 && found != 8) {
        PyErr_Format(PyExc_TypeError, "%s: %zd-byte items do not fit", name, found);
        PyBuffer_Release(view);
        return -1;
    }
    return view->len / found;
}

int take_all(PyObject *const *args, Py_ssize_t given, int count, Py_buffer *views,
             Py_ssize_t *sizes, const buffer_t *wanted) {
    memset(views, 0, sizeof(*views) * (size_t)count);
    memset(sizes, 0, sizeof(*sizes) * (size_t)count);
    if (!expect("arguments", given, count)) return 0;
    for (int k = 0; k < count; k++) {
        const buffer_t *each = &wanted[k];
        if (each->optional && args[k] == Py_None) continue;
        sizes[k] = take(args[k], &views[k], each->itemsize, each->writable, each->name);
        if (sizes[k] < 0) {
            release_all(views, count);
            return 0;
        }
    }
    return 1;
}

void release_all(Py_buffer *views, int count) {
    for (int k = 0; k < count; k++)
        if (views[k].obj) PyBuffer_Release(&views[k]);
}

int expect(const char *name, Py_ssize_t found, Py_ssize_t wanted) {
    if (found == wanted) return 1;
    PyErr_Format(PyExc_ValueError, "%s: %zd items, expected %zd", name, found, wanted);
    return 0;
}

ids_t ids_of(const Py_buffer *view) {
    return (ids_t){view->buf, view->len / view->itemsize, view->itemsize == 8};
}

PyObject *fault_tuple(const fault_t *fault) {
    if (fault->kind == FAULT_MEMORY) return PyErr_NoMemory();
    return Py_BuildValue("iLLLL", fault->kind, (long long)fault->table, (long long)fault->sample,
                         (long long)fault->position, (long long)fault->value);
}

int take_forms(PyObject *tuple, Py_ssize_t count, int numbers, const char **forms) {
    if (!expect("forms", PyTuple_GET_SIZE(tuple), count)) return 0;
    for (Py_ssize_t k = 0; k < count; k++) {
        forms[k] = PyBytes_AsString(PyTuple_GET_ITEM(tuple, k));
        if (forms[k] == NULL) return 0;
        if (!form_check(forms[k], numbers)) {
            PyErr_SetString(PyExc_ValueError, "forms: unknown, or too many numbers");
            return 0;
        }
    }
    return 1;
}

int64_t blocks_for(int64_t rows) { return (rows + INDEX_ROWS - 1) / INDEX_ROWS; }

static int start(PyObject *module) {
    return add_pooler(module) && add_router(module) && add_split(module) && add_fast_path(module) &&
                   PyModule_AddFunctions(module, index_functions) == 0 &&
                   PyModule_AddFunctions(module, combine_functions) == 0 &&
                   PyModule_AddStringConstant(module, "INSTRUCTION_SET", gather_choose()) == 0
               ? 0
               : -1;
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, start}, {0, NULL}};
static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_kernels", "Row index, bucketize, gather-pool, combine: compiled.", 0,
    NULL, module_slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__kernels(void) { return PyModuleDef_Init(&definition); }
