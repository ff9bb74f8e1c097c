/* A patch, for Python. */
#include "python/patch.h"

#include "arithmetic/gather.h"

typedef struct {
    PyObject_HEAD
    patch_t patch;
    int64_t row_bytes, stored;
    Py_ssize_t count;
    Py_buffer *chunks; /* the rows */
} Patch;

static PyTypeObject *patch_type;

static void patch_free(PyObject *object) {
    Patch *self = (Patch *)object;
    PyTypeObject *type = Py_TYPE(object);
    if (self->chunks) release_all(self->chunks, (int)self->count);
    PyMem_Free(self->chunks);
    patch_close(&self->patch);
    type->tp_free(object);
    Py_DECREF(type);
}

const patch_t *patch_of(PyObject *object, int64_t stored, int64_t row_bytes) {
    if (!PyObject_TypeCheck(object, patch_type)) {
        PyErr_SetString(PyExc_TypeError, "patch: neither None nor a Patch");
        return NULL;
    }
    const Patch *self = (const Patch *)object;
    if (!expect("row bytes", (Py_ssize_t)self->row_bytes, (Py_ssize_t)row_bytes) ||
        !expect("stored rows", (Py_ssize_t)self->stored, (Py_ssize_t)stored))
        return NULL;
    return &self->patch;
}

/* Whether row `place` of chunk `chunk` is one, and `key` may be a row's. */
static int row_fits(const Patch *self, int64_t key, int32_t chunk, int64_t place) {
    if (chunk < 0 || chunk >= self->count || place < 0 || key < -MAX_PATCH_KEY ||
        key >= self->stored)
        return 0;
    return place < self->chunks[chunk].len / self->row_bytes;
}

/* The first of `size` rows that is none, or `size`. */
static Py_ssize_t first_wrong(const Patch *self, const int64_t *keys, const int32_t *chunks,
                              const int64_t *places, Py_ssize_t size) {
    Py_ssize_t i = 0;
    while (i < size && row_fits(self, keys[i], chunks[i], places[i])) i++;
    return i;
}

static void put_rows(Patch *self, const int64_t *keys, const int32_t *chunks, const int64_t *places,
                     Py_ssize_t size) {
    for (Py_ssize_t i = 0; i < size; i++) {
        const uint8_t *rows = self->chunks[chunks[i]].buf;
        patch_put(&self->patch, keys[i], rows + places[i] * self->row_bytes);
    }
}

static int patch_fill(Patch *self, PyObject *keys, PyObject *chunks, PyObject *places) {
    Py_buffer views[3] = {{0}, {0}, {0}};
    int filled = 0;
    const Py_ssize_t size = take(keys, &views[0], 8, 0, "keys");
    const Py_ssize_t numbers = size < 0 ? -1 : take(chunks, &views[1], 4, 0, "numbers");
    const Py_ssize_t at = numbers < 0 ? -1 : take(places, &views[2], 8, 0, "places");
    if (at < 0 || !expect("numbers", numbers, size) || !expect("places", at, size)) goto done;
    const int64_t *key = views[0].buf, *place = views[2].buf;
    Py_ssize_t wrong = 0;
    int opened = 0;
    Py_BEGIN_ALLOW_THREADS /* queries are answered meanwhile */
    wrong = first_wrong(self, key, views[1].buf, place, size);
    if (wrong == size) opened = patch_open(&self->patch, key, size, self->stored, self->row_bytes);
    if (opened) put_rows(self, key, views[1].buf, place, size);
    Py_END_ALLOW_THREADS
    if (wrong < size) {
        PyErr_Format(PyExc_ValueError, "row %zd of the patch is none", wrong);
        goto done;
    }
    if (!opened) {
        PyErr_NoMemory();
        goto done;
    }
    filled = 1;
done:
    release_all(views, 3);
    return filled;
}

PyDoc_STRVAR(patch_doc,
             "Patch(row bytes, stored rows, chunks, keys, numbers, places): a tuple of rows as "
             "bytes; for each "
             "patched row int64 its local index, or -1 - its id where it is not stored; int32 the "
             "number of its chunk; int64 which row of that. The last of several for a key holds.");
static PyObject *patch_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    PyObject *chunks, *keys, *numbers, *places;
    long long row_bytes, stored;
    (void)kwargs;
    if (!PyArg_ParseTuple(args, "LLO!OOO", &row_bytes, &stored, &PyTuple_Type, &chunks, &keys,
                          &numbers, &places))
        return NULL;
    if (row_bytes < 1 || row_bytes > 4 * MAX_DIM || stored < 0 || stored > MAX_PATCH_KEY) {
        PyErr_SetString(PyExc_ValueError, "row bytes, or stored rows: out of range");
        return NULL;
    }
    Patch *self = (Patch *)type->tp_alloc(type, 0);
    if (self == NULL) return NULL;
    self->row_bytes = row_bytes;
    self->stored = stored;
    const Py_ssize_t count = PyTuple_GET_SIZE(chunks);
    self->chunks = PyMem_Calloc((size_t)count + 1, sizeof(Py_buffer));
    int fits = self->chunks != NULL;
    if (!fits) PyErr_NoMemory();
    self->count = fits ? count : 0;
    for (Py_ssize_t c = 0; fits && c < count; c++)
        fits = take(PyTuple_GET_ITEM(chunks, c), &self->chunks[c], 1, 0, "chunk") >= 0;
    if (fits && patch_fill(self, keys, numbers, places)) return (PyObject *)self;
    Py_DECREF(self);
    return NULL;
}

static PyObject *patch_count(PyObject *object, void *closure) {
    (void)closure;
    return PyLong_FromLongLong(((Patch *)object)->patch.count);
}

static PyGetSetDef patch_fields[] = {
    {"rows", patch_count, NULL, "How many rows it has.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyType_Slot patch_slots[] = {
    {Py_tp_new, patch_new},
    {Py_tp_dealloc, patch_free},
    {Py_tp_getset, patch_fields},
    {Py_tp_doc, (void *)patch_doc},
    {0, NULL},
};
static PyType_Spec patch_spec = {"erless.dlrm._kernels.Patch", sizeof(Patch), 0, Py_TPFLAGS_DEFAULT,
                                 patch_slots};

int add_patch(PyObject *module) {
    PyObject *type = PyType_FromSpec(&patch_spec);
    if (type == NULL) return 0;
    patch_type = (PyTypeObject *)type;
    return PyModule_AddObjectRef(module, "Patch", type) == 0;
}
