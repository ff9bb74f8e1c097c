/* Gather-pool, for Python. */
#include "python/binding.h"

static void pooler_free(PyObject *object) {
    Pooler *self = (Pooler *)object;
    PyTypeObject *type = Py_TYPE(object);
    if (self->views)
        for (int64_t v = 0; v < 2 * self->count; v++)
            if (self->views[v].obj) PyBuffer_Release(&self->views[v]);
    PyMem_Free(self->views);
    PyMem_Free(self->slices);
    type->tp_free(object);
    Py_DECREF(type);
}

static int pooler_add(Pooler *self, int64_t s, PyObject *item) {
    PyObject *rows, *blocks;
    Py_buffer *views = self->views + 2 * s;
    slice_t *slice = &self->slices[s];
    long long table_rows, dim;
    if (!PyArg_ParseTuple(item, "OOLLii", &rows, &blocks, &table_rows, &dim, &slice->precision,
                          &slice->pooling))
        return 0;
    if (take(rows, &views[0], 1, 0, "rows") < 0) return 0;
    if (table_rows < 1 || dim < 1 || slice->precision < FP32 || slice->precision > INT4 ||
        slice->pooling < SUM || slice->pooling > MEAN) {
        PyErr_SetString(PyExc_ValueError, "slice: a field is out of range");
        return 0;
    }
    slice->dim = dim;
    slice->table_rows = table_rows;
    slice->row_bytes = stored_row_bytes(slice->precision, dim);
    slice->stored = views[0].len / slice->row_bytes;
    slice->rows = views[0].buf;
    if (!expect("rows", views[0].len, (Py_ssize_t)(slice->stored * slice->row_bytes))) return 0;
    if (blocks == Py_None)
        return expect("rows", (Py_ssize_t)slice->stored, (Py_ssize_t)table_rows);
    const Py_ssize_t words = take(blocks, &views[1], 8, 0, "blocks");
    if (words < 0) return 0;
    slice->blocks = views[1].buf;
    return expect("blocks", words, (Py_ssize_t)(INDEX_WORDS * blocks_for(table_rows)));
}

PyDoc_STRVAR(pooler_doc,
             "Pooler(slices): a tuple of (rows as bytes, blocks or None, table rows, dim, "
             "precision, pooling)");
static PyObject *pooler_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    PyObject *slices;
    (void)kwargs;
    if (!PyArg_ParseTuple(args, "O!", &PyTuple_Type, &slices)) return NULL;
    Pooler *self = (Pooler *)type->tp_alloc(type, 0);
    if (self == NULL) return NULL;
    const Py_ssize_t count = PyTuple_GET_SIZE(slices);
    self->slices = PyMem_Calloc((size_t)count + 1, sizeof(slice_t));
    self->views = PyMem_Calloc(2 * (size_t)count + 1, sizeof(Py_buffer));
    if (!self->slices || !self->views) {
        PyErr_NoMemory();
        Py_DECREF(self);
        return NULL;
    }
    self->count = count;
    for (Py_ssize_t s = 0; s < count; s++)
        if (!pooler_add(self, s, PyTuple_GET_ITEM(slices, s))) {
            Py_DECREF(self);
            return NULL;
        }
    return (PyObject *)self;
}

PyDoc_STRVAR(pool_doc,
             "pool(values, weights or None, lengths, out, columns or None) -> floats written or a "
             "fault; columns None packs the bags that are not empty, else out is (samples, stride)");
static PyObject *pooler_pool(PyObject *object, PyObject *const *args, Py_ssize_t count) {
    static const buffer_t wanted[] = {{"values", 0, 0, 0}, {"weights", 4, 0, 1},
                                      {"lengths", 4, 0, 0}, {"out", 4, 1, 0},
                                      {"columns", 8, 0, 1}};
    const Pooler *self = (const Pooler *)object;
    Py_buffer views[5];
    Py_ssize_t sizes[5];
    PyObject *result = NULL;
    if (!take_all(args, count, 5, views, sizes, wanted)) return NULL;
    const int packed = views[4].obj == NULL;
    const int64_t samples = self->count ? sizes[2] / self->count : 0;
    const int64_t stride = samples ? sizes[3] / samples : 0;
    const int32_t *lengths = views[2].buf;
    int64_t needed = 0;
    if (!expect("lengths", sizes[2], (Py_ssize_t)(samples * self->count))) goto done;
    if (views[1].obj && !expect("weights", sizes[1], sizes[0])) goto done;
    for (int64_t s = 0; s < self->count; s++) {
        if (!views[1].obj && self->slices[s].pooling == WEIGHTED) {
            PyErr_SetString(PyExc_ValueError, "weights: none, but a slice pools by weighted sum");
            goto done;
        }
        for (int64_t b = 0; packed && b < samples; b++)
            if (lengths[s * samples + b]) needed += self->slices[s].dim;
    }
    if (packed && sizes[3] < needed) {
        PyErr_Format(PyExc_ValueError, "out: %zd items, %lld needed", sizes[3], (long long)needed);
        goto done;
    }
    if (!packed) {
        const int64_t *columns = views[4].buf;
        if (!expect("out", sizes[3], (Py_ssize_t)(stride * samples)) ||
            !expect("columns", sizes[4], (Py_ssize_t)self->count))
            goto done;
        for (int64_t s = 0; samples && s < self->count; s++)
            if (columns[s] < 0 || columns[s] + self->slices[s].dim > stride) {
                PyErr_SetString(PyExc_ValueError, "columns: beyond the row of `out`");
                goto done;
            }
    }
    const ids_t values = ids_of(&views[0]);
    fault_t fault = {0};
    int64_t written;
    Py_BEGIN_ALLOW_THREADS written =
        pool(self->slices, self->count, &values, views[1].buf, lengths, samples, views[3].buf,
             stride, views[4].buf, packed, &fault);
    Py_END_ALLOW_THREADS result = fault.kind ? fault_tuple(&fault) : PyLong_FromLongLong(written);
done:
    release_all(views, 5);
    return result;
}

static PyMethodDef pooler_methods[] = {
    {"pool", (PyCFunction)(void (*)(void))pooler_pool, METH_FASTCALL, pool_doc},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot pooler_slots[] = {
    {Py_tp_new, pooler_new},         {Py_tp_dealloc, pooler_free},
    {Py_tp_methods, pooler_methods}, {Py_tp_doc, (void *)pooler_doc},
    {0, NULL},
};
PyTypeObject *pooler_type;
static PyType_Spec pooler_spec = {"erless.dlrm._kernels.Pooler", sizeof(Pooler), 0,
                                  Py_TPFLAGS_DEFAULT, pooler_slots};

int add_pooler(PyObject *module) {
    PyObject *type = PyType_FromSpec(&pooler_spec);
    if (type == NULL) return 0;
    pooler_type = (PyTypeObject *)type;
    return PyModule_AddObjectRef(module, "Pooler", type) == 0;
}
