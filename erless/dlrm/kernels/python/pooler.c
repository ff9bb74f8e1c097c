/* Gather-pool, for Python. */
#include "python/pooler.h"

#include <stdlib.h>

#include "arithmetic/index.h"

static void pooler_free(PyObject *object) {
    Pooler *self = (Pooler *)object;
    PyTypeObject *type = Py_TYPE(object);
    if (self->views)
        for (int64_t v = 0; v < 2 * self->count; v++)
            if (self->views[v].obj) PyBuffer_Release(&self->views[v]);
    Py_XDECREF(self->given);
    if (self->slices)
        for (int64_t s = 0; s < self->count; s++) free((void *)self->slices[s].fused);
    PyMem_Free(self->views);
    PyMem_Free(self->slices);
    type->tp_free(object);
    Py_DECREF(type);
}

/* Put index and patch of a slice together; sets an error where that fails. */
static int pooler_fuse(slice_t *slice) {
    const int64_t count = blocks_for(slice->indexed);
    uint64_t *fused = aligned_alloc(64, sizeof(uint64_t) * 2 * INDEX_WORDS * (size_t)count);
    slice->fused = fused;
    if (fused == NULL) {
        PyErr_NoMemory();
        return 0;
    }
    int fits;
    Py_BEGIN_ALLOW_THREADS /* queries are answered meanwhile */
    fits = patch_fuse(slice->patch, slice->blocks, count, fused);
    Py_END_ALLOW_THREADS
    if (fits) return 1;
    PyErr_SetString(PyExc_ValueError, "blocks: the index is beyond the stored rows");
    return 0;
}

static int pooler_add(Pooler *self, int64_t s, PyObject *item) {
    PyObject *rows, *blocks, *patch = Py_None;
    Py_buffer *views = self->views + 2 * s;
    slice_t *slice = &self->slices[s];
    long long table_rows, dim, indexed = -1;
    if (!PyArg_ParseTuple(item, "OOLLii|OL", &rows, &blocks, &table_rows, &dim, &slice->precision,
                          &slice->pooling, &patch, &indexed))
        return 0;
    if (indexed < 0) indexed = table_rows;
    if (take(rows, &views[0], 1, 0, "rows") < 0) return 0;
    if (table_rows < 1 || table_rows > MAX_ROWS || dim < 1 || dim > MAX_DIM ||
        slice->precision < FP32 || slice->precision > INT4 || slice->pooling < SUM ||
        slice->pooling > MEAN || indexed < 1 || indexed > table_rows ||
        (indexed < table_rows && patch == Py_None)) {
        PyErr_SetString(PyExc_ValueError, "slice: a field is out of range");
        return 0;
    }
    slice->dim = dim;
    slice->table_rows = table_rows;
    slice->indexed = indexed;
    slice->row_bytes = stored_row_bytes(slice->precision, dim);
    slice->stored = views[0].len / slice->row_bytes;
    slice->rows = views[0].buf;
    if (!expect("rows", views[0].len, (Py_ssize_t)(slice->stored * slice->row_bytes))) return 0;
    if (patch != Py_None &&
        (slice->patch = patch_of(patch, slice->stored, slice->row_bytes)) == NULL)
        return 0;
    if (blocks == Py_None) return expect("rows", (Py_ssize_t)slice->stored, (Py_ssize_t)indexed);
    const Py_ssize_t words = take(blocks, &views[1], 8, 0, "blocks");
    if (words < 0) return 0;
    slice->blocks = views[1].buf;
    if (!expect("blocks", words, (Py_ssize_t)(INDEX_WORDS * blocks_for(indexed)))) return 0;
    return slice->patch == NULL || slice->patch->replacing == 0 || pooler_fuse(slice);
}

PyDoc_STRVAR(pooler_doc,
             "Pooler(slices): a tuple of (rows as bytes, blocks or None, table rows, dim, "
             "precision, pooling), or also a Patch or None, and how many rows the blocks are of");
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
    self->given = Py_NewRef(slices);
    for (Py_ssize_t s = 0; s < count; s++)
        if (!pooler_add(self, s, PyTuple_GET_ITEM(slices, s))) {
            Py_DECREF(self);
            return NULL;
        }
    return (PyObject *)self;
}

PyDoc_STRVAR(
    pool_doc,
    "pool(values, weights or None, lengths, out, columns or None, begins or None) -> floats "
    "written or a fault; columns None packs the bags that are not empty, else out is (samples, "
    "stride); begins (slices + 1): where each slice's bags begin, else all have as many");
/* Whether `floats` are enough for the packed bags; sets an error where not. */
static int packed_fits(const Pooler *self, const bags_t *bags, Py_ssize_t floats) {
    const int64_t needed = packed_size(self->slices, bags);
    if (floats >= needed) return 1;
    PyErr_Format(PyExc_ValueError, "out: %zd items, %lld needed", floats, (long long)needed);
    return 0;
}

/* Whether each slice's vectors lie within a row of `stride`; sets an error where not. */
static int columns_fit(const Pooler *self, const int64_t *columns, Py_ssize_t count,
                       int64_t samples, int64_t stride) {
    if (!expect("columns", count, (Py_ssize_t)self->count)) return 0;
    for (int64_t s = 0; samples && s < self->count; s++)
        if (columns[s] < 0 || self->slices[s].dim > stride ||
            columns[s] > stride - self->slices[s].dim) {
            PyErr_SetString(PyExc_ValueError, "columns: beyond the row of `out`");
            return 0;
        }
    return 1;
}

static PyObject *pooler_pool(PyObject *object, PyObject *const *args, Py_ssize_t count) {
    static const buffer_t wanted[] = {{"values", 0, 0, 0},  {"weights", 4, 0, 1},
                                      {"lengths", 4, 0, 0}, {"out", 4, 1, 0},
                                      {"columns", 8, 0, 1}, {"begins", 8, 0, 1}};
    const Pooler *self = (const Pooler *)object;
    Py_buffer views[6];
    Py_ssize_t sizes[6];
    PyObject *result = NULL;
    bags_t bags;
    if (!take_all(args, count, 6, views, sizes, wanted)) return NULL;
    const int packed = views[4].obj == NULL;
    int fits = lengths_taken(&views[2], &views[5], self->count, &bags) &&
               (!views[1].obj || expect("weights", sizes[1], sizes[0]));
    const int64_t samples = bags.samples;
    const int64_t stride = samples ? sizes[3] / samples : 0;
    if (fits && packed) fits = packed_fits(self, &bags, sizes[3]);
    if (fits && !packed && bags.begins) {
        PyErr_SetString(PyExc_ValueError, "columns: only where all slices have as many bags");
        fits = 0;
    }
    if (fits && !packed)
        fits = expect_product("out", sizes[3], stride, samples) &&
               columns_fit(self, views[4].buf, sizes[4], samples, stride);
    if (fits) {
        const ids_t values = ids_of(&views[0]);
        fault_t fault = {0};
        int64_t written;
        Py_BEGIN_ALLOW_THREADS
        written = pool(self->slices, &values, views[1].buf, &bags, views[3].buf, stride,
                       views[4].buf, packed, &fault);
        Py_END_ALLOW_THREADS
        result = fault.kind ? fault_tuple(&fault) : PyLong_FromLongLong(written);
    }
    release_all(views, 6);
    return result;
}

static PyMethodDef pooler_methods[] = {
    {"pool", (PyCFunction)(void (*)(void))pooler_pool, METH_FASTCALL, pool_doc},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot pooler_slots[] = {
    {Py_tp_new, pooler_new},
    {Py_tp_dealloc, pooler_free},
    {Py_tp_methods, pooler_methods},
    {Py_tp_doc, (void *)pooler_doc},
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
