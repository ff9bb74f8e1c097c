/* The Python binding: buffers in, buffers out, the GIL released while a kernel runs.
 *
 * Callers (erless/dlrm/rows.py, embedding.py) hand over C-contiguous arrays of the dtype named
 * here; sizes are checked again, so that no mistake above becomes a wild read. A query that does
 * not fit comes back as the tuple (kind, table, sample, position, value) of `fault_t`. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "kernels.h"

/* Take a buffer of `itemsize`-byte items; 0: 4 or 8. Returns the number of items, or -1. */
static Py_ssize_t take(PyObject *from, Py_buffer *view, Py_ssize_t itemsize, int writable,
                       const char *name) {
    const int flags = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0);
    if (PyObject_GetBuffer(from, view, flags) < 0) return -1;
    const Py_ssize_t found = view->itemsize;
    if (itemsize ? found != itemsize : found != 4 && found != 8) {
        PyErr_Format(PyExc_TypeError, "%s: %zd-byte items do not fit", name, found);
        PyBuffer_Release(view);
        return -1;
    }
    return view->len / found;
}

static int expect(const char *name, Py_ssize_t found, Py_ssize_t wanted) {
    if (found == wanted) return 1;
    PyErr_Format(PyExc_ValueError, "%s: %zd items, expected %zd", name, found, wanted);
    return 0;
}

static ids_t ids_of(const Py_buffer *view) {
    return (ids_t){view->buf, view->len / view->itemsize, view->itemsize == 8};
}

static PyObject *fault_tuple(const fault_t *fault) {
    if (fault->kind == FAULT_MEMORY) return PyErr_NoMemory();
    return Py_BuildValue("iLLLL", fault->kind, (long long)fault->table, (long long)fault->sample,
                         (long long)fault->position, (long long)fault->value);
}

/* ---- row index ---- */

static int64_t blocks_for(int64_t rows) { return (rows + INDEX_ROWS - 1) / INDEX_ROWS; }

PyDoc_STRVAR(mark_doc, "index_mark(blocks, rows, ids) -> position of the first bad id, or -1");
static PyObject *py_index_mark(PyObject *module, PyObject *args) {
    PyObject *blocks, *ids, *result = NULL;
    Py_buffer b, i;
    long long rows;
    (void)module;
    if (!PyArg_ParseTuple(args, "OLO", &blocks, &rows, &ids)) return NULL;
    const Py_ssize_t words = take(blocks, &b, 8, 1, "blocks");
    if (words < 0) return NULL;
    if (expect("blocks", words, (Py_ssize_t)(INDEX_WORDS * blocks_for(rows))) &&
        take(ids, &i, 0, 0, "ids") >= 0) {
        const ids_t view = ids_of(&i);
        int64_t bad;
        Py_BEGIN_ALLOW_THREADS bad = index_mark(b.buf, rows, &view);
        Py_END_ALLOW_THREADS PyBuffer_Release(&i);
        result = PyLong_FromLongLong(bad);
    }
    PyBuffer_Release(&b);
    return result;
}

PyDoc_STRVAR(rank_doc, "index_rank(blocks) -> stored rows; fills in the ranks");
static PyObject *py_index_rank(PyObject *module, PyObject *blocks) {
    Py_buffer b;
    int64_t stored;
    (void)module;
    const Py_ssize_t words = take(blocks, &b, 8, 1, "blocks");
    if (words < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS stored = index_rank(b.buf, words / INDEX_WORDS);
    Py_END_ALLOW_THREADS PyBuffer_Release(&b);
    return PyLong_FromLongLong(stored);
}

PyDoc_STRVAR(find_doc, "index_find(blocks, rows, ids, locals) -> (first bad position or -1, absent)");
static PyObject *py_index_find(PyObject *module, PyObject *args) {
    PyObject *blocks, *ids, *locals, *result = NULL;
    Py_buffer b = {0}, i, l;
    long long rows;
    int64_t absent = 0, bad;
    (void)module;
    if (!PyArg_ParseTuple(args, "OLOO", &blocks, &rows, &ids, &locals)) return NULL;
    if (blocks != Py_None) {
        const Py_ssize_t words = take(blocks, &b, 8, 0, "blocks");
        if (words < 0) return NULL;
        if (!expect("blocks", words, (Py_ssize_t)(INDEX_WORDS * blocks_for(rows)))) goto no_ids;
    }
    const Py_ssize_t size = take(ids, &i, 0, 0, "ids");
    if (size < 0) goto no_ids;
    const Py_ssize_t room = take(locals, &l, 8, 1, "locals");
    if (room < 0) goto no_locals;
    if (expect("locals", room, size)) {
        const ids_t view = ids_of(&i);
        Py_BEGIN_ALLOW_THREADS bad = index_find(b.buf, rows, &view, l.buf, &absent);
        Py_END_ALLOW_THREADS result = Py_BuildValue("LL", (long long)bad, (long long)absent);
    }
    PyBuffer_Release(&l);
no_locals:
    PyBuffer_Release(&i);
no_ids:
    if (b.obj) PyBuffer_Release(&b);
    return result;
}

/* ---- packing ---- */

PyDoc_STRVAR(pick_doc,
             "pick_rows(rows, routes, shard, counts, out or None, sums) -> (rows found, weight); "
             "float32 (n, dim), uint8 (n), int, float32 (n), float32 (found, dim), float64 (dim)");
static PyObject *py_pick_rows(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    static const char *names[] = {"rows", "routes", "shard", "counts", "out", "sums"};
    static const Py_ssize_t items[] = {4, 1, 0, 4, 4, 8};
    Py_buffer views[6] = {{0}};
    Py_ssize_t sizes[6] = {0};
    PyObject *result = NULL;
    (void)module;
    if (!expect("arguments", count, 6)) return NULL;
    const long shard = PyLong_AsLong(args[2]);
    if (shard == -1 && PyErr_Occurred()) return NULL;
    for (int k = 0; k < 6; k++) {
        if (k == 2 || (k == 4 && args[k] == Py_None)) continue;
        sizes[k] = take(args[k], &views[k], items[k], k >= 4, names[k]);
        if (sizes[k] < 0) {
            views[k].obj = NULL;
            goto done;
        }
    }
    const Py_ssize_t dim = sizes[5];
    const uint8_t *routes = views[1].buf;
    if (!expect("rows", sizes[0], sizes[1] * dim) || !expect("counts", sizes[3], sizes[1]))
        goto done;
    if (views[4].obj) {
        Py_ssize_t wanted = 0;
        for (Py_ssize_t i = 0; i < sizes[1]; i++) wanted += routes[i] == shard;
        if (!expect("out", sizes[4], wanted * dim)) goto done;
    }
    double weight = 0;
    int64_t found;
    Py_BEGIN_ALLOW_THREADS found =
        pick_rows(views[0].buf, sizes[1], dim, routes, (int)shard, views[3].buf, views[4].buf,
                  views[5].buf, &weight);
    Py_END_ALLOW_THREADS result = Py_BuildValue("Ld", (long long)found, weight);
done:
    for (int k = 0; k < 6; k++)
        if (views[k].obj) PyBuffer_Release(&views[k]);
    return result;
}

/* ---- routing ---- */

typedef struct {
    PyObject_HEAD
    routing_t routing;
    Py_buffer *tables, slots, widths;
    home_t *homes; /* their words are ours */
    int64_t *rows, width; /* width: tables of all shards together */
} Router;

static void router_free(PyObject *object) {
    Router *self = (Router *)object;
    PyTypeObject *type = Py_TYPE(object);
    if (self->tables)
        for (int64_t t = 0; t < self->routing.tables; t++)
            if (self->tables[t].obj) PyBuffer_Release(&self->tables[t]);
    if (self->homes)
        for (int64_t t = 0; t < self->routing.tables; t++)
            PyMem_Free((void *)self->homes[t].words);
    if (self->slots.obj) PyBuffer_Release(&self->slots);
    if (self->widths.obj) PyBuffer_Release(&self->widths);
    PyMem_Free(self->homes);
    PyMem_Free(self->tables);
    PyMem_Free(self->rows);
    PyMem_Free((void *)self->routing.routes);
    type->tp_free(object);
    Py_DECREF(type);
}

/* homes: per table None, or (shard, blocks or None: all rows). */
static int router_settle(Router *self, PyObject *homes) {
    const Py_ssize_t tables = (Py_ssize_t)self->routing.tables;
    if (!expect("homes", PyTuple_GET_SIZE(homes), tables)) return 0;
    self->homes = PyMem_Calloc((size_t)tables + 1, sizeof(home_t));
    if (!self->homes) {
        PyErr_NoMemory();
        return 0;
    }
    for (Py_ssize_t t = 0; t < tables; t++) {
        PyObject *item = PyTuple_GET_ITEM(homes, t), *blocks;
        long long shard;
        self->homes[t].shard = -1;
        if (item == Py_None) continue;
        if (!PyArg_ParseTuple(item, "LO", &shard, &blocks)) return 0;
        if (shard < 0 || shard >= self->routing.shards ||
            self->routing.slots[shard * tables + t] < 0) {
            PyErr_SetString(PyExc_ValueError, "homes: the shard does not hold the table");
            return 0;
        }
        self->homes[t].shard = shard;
        if (blocks == Py_None) continue;
        Py_buffer view;
        const int64_t count = blocks_for(self->rows[t]);
        const Py_ssize_t found = take(blocks, &view, 8, 0, "blocks");
        if (found < 0) return 0;
        word_t *words = NULL;
        if (expect("blocks", found, (Py_ssize_t)(INDEX_WORDS * count))) {
            words = PyMem_Malloc(sizeof(word_t) * (size_t)(count * (INDEX_WORDS - 1)));
            if (words) index_unpack(view.buf, count, words);
            else PyErr_NoMemory();
        }
        PyBuffer_Release(&view);
        if (words == NULL) return 0;
        self->homes[t].words = words;
    }
    self->routing.homes = self->homes;
    return 1;
}

PyDoc_STRVAR(router_doc,
             "Router(routes, slots, widths, homes or None): one uint8 array per table; int32 "
             "(shards, tables); int64 (shards); per table None or (shard, its blocks or None)");
static PyObject *router_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    PyObject *routes, *slots, *widths, *homes = Py_None;
    (void)kwargs;
    if (!PyArg_ParseTuple(args, "O!OO|O", &PyTuple_Type, &routes, &slots, &widths, &homes))
        return NULL;
    if (homes != Py_None && !PyTuple_Check(homes)) {
        PyErr_SetString(PyExc_TypeError, "homes: neither None nor a tuple");
        return NULL;
    }
    Router *self = (Router *)type->tp_alloc(type, 0);
    if (self == NULL) return NULL;
    const Py_ssize_t tables = PyTuple_GET_SIZE(routes);
    self->tables = PyMem_Calloc((size_t)tables + 1, sizeof(Py_buffer));
    self->rows = PyMem_Calloc((size_t)tables + 1, sizeof(int64_t));
    self->routing.routes = PyMem_Calloc((size_t)tables + 1, sizeof(uint8_t *));
    if (!self->tables || !self->rows || !self->routing.routes) {
        PyErr_NoMemory();
        goto failed;
    }
    self->routing.tables = tables;
    for (Py_ssize_t t = 0; t < tables; t++) {
        const Py_ssize_t rows = take(PyTuple_GET_ITEM(routes, t), &self->tables[t], 1, 0, "route");
        if (rows < 0) {
            self->tables[t].obj = NULL;
            goto failed;
        }
        self->rows[t] = rows;
        self->routing.routes[t] = self->tables[t].buf;
    }
    const Py_ssize_t shards = take(widths, &self->widths, 8, 0, "widths");
    if (shards < 0) {
        self->widths.obj = NULL;
        goto failed;
    }
    const Py_ssize_t cells = take(slots, &self->slots, 4, 0, "slots");
    if (cells < 0) {
        self->slots.obj = NULL;
        goto failed;
    }
    if (shards > MAX_SHARDS) {
        PyErr_Format(PyExc_ValueError, "%zd shards, at most %d", shards, MAX_SHARDS);
        goto failed;
    }
    if (!expect("slots", cells, shards * tables)) goto failed;
    self->routing.shards = shards;
    self->routing.rows = self->rows;
    self->routing.slots = self->slots.buf;
    self->routing.widths = self->widths.buf;
    for (Py_ssize_t s = 0; s < shards; s++) {
        const int64_t width = self->routing.widths[s];
        for (Py_ssize_t t = 0; t < tables; t++)
            if (self->routing.slots[s * tables + t] >= width) {
                PyErr_SetString(PyExc_ValueError, "slots: beyond the shard's tables");
                goto failed;
            }
        if (width < 0) {
            PyErr_SetString(PyExc_ValueError, "widths: negative");
            goto failed;
        }
        self->width += width;
    }
    if (homes != Py_None && !router_settle(self, homes)) goto failed;
    return (PyObject *)self;
failed:
    Py_DECREF(self);
    return NULL;
}

PyDoc_STRVAR(bucketize_doc,
             "bucketize(values, weights or None, lengths, values_out, weights_out or None, "
             "lengths_out, starts) -> None or a fault");
static PyObject *router_bucketize(PyObject *object, PyObject *const *args, Py_ssize_t count) {
    static const char *names[] = {"values", "weights", "lengths", "values_out", "weights_out",
                                  "lengths_out", "starts"};
    const Router *self = (const Router *)object;
    Py_buffer views[7] = {{0}};
    Py_ssize_t sizes[7] = {0};
    PyObject *result = NULL;
    if (!expect("arguments", count, 7)) return NULL;
    const Py_ssize_t items[7] = {0, 4, 4, 0, 4, 4, 8};
    for (int k = 0; k < 7; k++) {
        if ((k == 1 || k == 4) && args[k] == Py_None) continue;
        sizes[k] = take(args[k], &views[k], items[k], k >= 3, names[k]);
        if (sizes[k] < 0) {
            views[k].obj = NULL;
            goto done;
        }
    }
    const int64_t tables = self->routing.tables;
    const int64_t samples = tables ? sizes[2] / tables : 0;
    if (!expect("lengths", sizes[2], (Py_ssize_t)(samples * tables)) ||
        !expect("values_out", views[3].len, views[0].len) ||
        !expect("starts", sizes[6], (Py_ssize_t)self->routing.shards + 1) ||
        !expect("lengths_out", sizes[5], (Py_ssize_t)(self->width * samples)))
        goto done;
    if (views[1].obj && (!expect("weights", sizes[1], sizes[0]) ||
                         !expect("weights_out", sizes[4], sizes[0])))
        goto done;
    const ids_t values = ids_of(&views[0]);
    fault_t fault = {0};
    Py_BEGIN_ALLOW_THREADS route(&self->routing, &values, views[1].buf, views[2].buf, samples,
                                 views[3].buf, views[4].buf, views[5].buf, views[6].buf, &fault);
    Py_END_ALLOW_THREADS result = fault.kind ? fault_tuple(&fault) : Py_NewRef(Py_None);
done:
    for (int k = 0; k < 7; k++)
        if (views[k].obj) PyBuffer_Release(&views[k]);
    return result;
}

static PyMethodDef router_methods[] = {
    {"bucketize", (PyCFunction)(void (*)(void))router_bucketize, METH_FASTCALL, bucketize_doc},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot router_slots[] = {
    {Py_tp_new, router_new},         {Py_tp_dealloc, router_free},
    {Py_tp_methods, router_methods}, {Py_tp_doc, (void *)router_doc},
    {0, NULL},
};
static PyType_Spec router_spec = {"erless.dlrm._kernels.Router", sizeof(Router), 0,
                                  Py_TPFLAGS_DEFAULT, router_slots};

/* ---- gather-pool ---- */

typedef struct {
    PyObject_HEAD
    int64_t count;
    slice_t *slices;
    Py_buffer *views; /* rows and blocks of each slice */
} Pooler;

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
    if (take(rows, &views[0], 1, 0, "rows") < 0) {
        views[0].obj = NULL;
        return 0;
    }
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
    if (words < 0) {
        views[1].obj = NULL;
        return 0;
    }
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
    static const char *names[] = {"values", "weights", "lengths", "out", "columns"};
    const Pooler *self = (const Pooler *)object;
    Py_buffer views[5] = {{0}};
    Py_ssize_t sizes[5] = {0};
    PyObject *result = NULL;
    if (!expect("arguments", count, 5)) return NULL;
    const Py_ssize_t items[5] = {0, 4, 4, 4, 8};
    for (int k = 0; k < 5; k++) {
        if ((k == 1 || k == 4) && args[k] == Py_None) continue;
        sizes[k] = take(args[k], &views[k], items[k], k == 3, names[k]);
        if (sizes[k] < 0) {
            views[k].obj = NULL;
            goto done;
        }
    }
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
    for (int k = 0; k < 5; k++)
        if (views[k].obj) PyBuffer_Release(&views[k]);
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
static PyType_Spec pooler_spec = {"erless.dlrm._kernels.Pooler", sizeof(Pooler), 0,
                                  Py_TPFLAGS_DEFAULT, pooler_slots};

/* ---- combine ---- */

/* Check that `places` (count, 3) lies within rows of `stride`. Returns the partial's width, or -1. */
static int64_t places_width(const place_t *places, Py_ssize_t count, int64_t stride) {
    int64_t width = 0;
    for (Py_ssize_t s = 0; s < count; s++) {
        const place_t *place = &places[s];
        if (place->column < 0 || place->dim < 1 || place->dim > stride ||
            place->column > stride - place->dim) {
            PyErr_SetString(PyExc_ValueError, "places: beyond the row of `out`");
            return -1;
        }
        width += place->dim;
    }
    return width;
}

enum { BEGIN, ADD_PARTIAL, END };

/* out (samples, stride), places (count, 3), lengths (count, samples), partial, packed */
static PyObject *combine_step(int step, PyObject *const *args, Py_ssize_t count, Py_ssize_t wanted) {
    Py_buffer out = {0}, places = {0}, lengths = {0}, partial = {0};
    PyObject *result = NULL;
    if (!expect("arguments", count, wanted)) return NULL;
    const Py_ssize_t samples = PyLong_AsSsize_t(args[0]);
    if (samples == -1 && PyErr_Occurred()) return NULL;
    const Py_ssize_t floats = take(args[1], &out, 4, 1, "out");
    if (floats < 0) {
        out.obj = NULL;
        goto done;
    }
    const Py_ssize_t cells = take(args[2], &places, 8, 0, "places");
    if (cells < 0) {
        places.obj = NULL;
        goto done;
    }
    const int64_t stride = samples > 0 ? floats / samples : 0;
    if (!expect("out", floats, (Py_ssize_t)(stride * samples))) goto done;
    if (!expect("places", cells, cells / 3 * 3)) goto done;
    const int64_t width = samples > 0 ? places_width(places.buf, cells / 3, stride) : 0;
    if (width < 0) goto done;
    if (step != BEGIN) {
        const Py_ssize_t bags = take(args[3], &lengths, 4, 0, "lengths");
        if (bags < 0) {
            lengths.obj = NULL;
            goto done;
        }
        if (!expect("lengths", bags, cells / 3 * samples)) goto done;
    }
    if (step == BEGIN) combine_begin(out.buf, stride, samples, places.buf, cells / 3);
    if (step == END) combine_end(out.buf, stride, lengths.buf, samples, places.buf, cells / 3);
    if (step == ADD_PARTIAL) {
        const int packed = PyObject_IsTrue(args[5]);
        if (packed < 0) goto done;
        if (PyObject_GetBuffer(args[4], &partial, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) < 0) {
            partial.obj = NULL;
            goto done;
        }
        const int half = partial.itemsize == 2;
        int64_t needed = width * samples;
        if (packed) {
            const place_t *place = places.buf;
            const int32_t *length = lengths.buf;
            needed = 0;
            for (Py_ssize_t s = 0; s < cells / 3; s++)
                for (Py_ssize_t b = 0; b < samples; b++)
                    if (length[s * samples + b]) needed += place[s].dim;
        }
        if (!half && partial.itemsize != 4) {
            PyErr_SetString(PyExc_TypeError, "partial: neither float32 nor float16");
            goto done;
        }
        if (!expect("partial", partial.len / partial.itemsize, (Py_ssize_t)needed)) goto done;
        combine(out.buf, stride, partial.buf, half, packed, lengths.buf, samples, places.buf,
                cells / 3);
    }
    result = Py_NewRef(Py_None);
done:
    if (out.obj) PyBuffer_Release(&out);
    if (places.obj) PyBuffer_Release(&places);
    if (lengths.obj) PyBuffer_Release(&lengths);
    if (partial.obj) PyBuffer_Release(&partial);
    return result;
}

PyDoc_STRVAR(begin_doc, "combine_begin(samples, out, places): sums at 0, maxima at -inf");
static PyObject *py_begin(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    return combine_step(BEGIN, args, count, 3);
}

PyDoc_STRVAR(combine_doc, "combine(samples, out, places, lengths, partial, packed)");
static PyObject *py_combine(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    return combine_step(ADD_PARTIAL, args, count, 6);
}

PyDoc_STRVAR(end_doc, "combine_end(samples, out, places, lengths): means divided, no row: 0");
static PyObject *py_end(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    return combine_step(END, args, count, 4);
}

PyDoc_STRVAR(half_doc, "to_half(floats, halves): float32 to float16, nearest even");
static PyObject *py_to_half(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    Py_buffer from, to;
    PyObject *result = NULL;
    (void)module;
    if (!expect("arguments", count, 2)) return NULL;
    const Py_ssize_t size = take(args[0], &from, 4, 0, "floats");
    if (size < 0) return NULL;
    const Py_ssize_t room = take(args[1], &to, 2, 1, "halves");
    if (room >= 0) {
        if (expect("halves", room, size)) {
            to_half(from.buf, to.buf, size);
            result = Py_NewRef(Py_None);
        }
        PyBuffer_Release(&to);
    }
    PyBuffer_Release(&from);
    return result;
}

static PyMethodDef functions[] = {
    {"index_mark", py_index_mark, METH_VARARGS, mark_doc},
    {"index_rank", py_index_rank, METH_O, rank_doc},
    {"index_find", py_index_find, METH_VARARGS, find_doc},
    {"pick_rows", (PyCFunction)(void (*)(void))py_pick_rows, METH_FASTCALL, pick_doc},
    {"combine_begin", (PyCFunction)(void (*)(void))py_begin, METH_FASTCALL, begin_doc},
    {"combine", (PyCFunction)(void (*)(void))py_combine, METH_FASTCALL, combine_doc},
    {"combine_end", (PyCFunction)(void (*)(void))py_end, METH_FASTCALL, end_doc},
    {"to_half", (PyCFunction)(void (*)(void))py_to_half, METH_FASTCALL, half_doc},
    {NULL, NULL, 0, NULL},
};

static int start(PyObject *module) {
    PyObject *router = PyType_FromSpec(&router_spec), *pooler = PyType_FromSpec(&pooler_spec);
    int failed = router == NULL || pooler == NULL;
    failed = failed || PyModule_AddObjectRef(module, "Router", router) < 0;
    failed = failed || PyModule_AddObjectRef(module, "Pooler", pooler) < 0;
    failed = failed ||
             PyModule_AddStringConstant(module, "INSTRUCTION_SET", gather_choose()) < 0;
    Py_XDECREF(router);
    Py_XDECREF(pooler);
    return failed ? -1 : 0;
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, start}, {0, NULL}};
static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_kernels", "Row index, bucketize, gather-pool, combine: compiled.", 0,
    functions, module_slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__kernels(void) { return PyModuleDef_Init(&definition); }
