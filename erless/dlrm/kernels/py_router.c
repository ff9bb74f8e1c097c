/* Bucketize, for Python. */
#include "binding.h"

typedef struct {
    PyObject_HEAD
    routing_t routing;
    Py_buffer *tables, slots, widths;
    PyObject *poolers; /* keeps the homes' rows alive */
    home_t *homes;     /* their words are ours */
    int64_t *rows, width; /* width: tables of all shards together */
} Router;

/* What a query found at home. */
typedef struct {
    PyObject_HEAD
    Router *router;
    kept_t kept;
    int64_t samples;
} Kept;

static PyTypeObject *kept_type;

/* ---- Kept ---- */

static void kept_free(PyObject *object) {
    Kept *self = (Kept *)object;
    PyTypeObject *type = Py_TYPE(object);
    PyMem_Free(self->kept.rows);
    PyMem_Free(self->kept.weights);
    PyMem_Free(self->kept.sizes);
    Py_XDECREF(self->router);
    type->tp_free(object);
    Py_DECREF(type);
}

/* Room for a query of `size` ids. */
static Kept *kept_new(Router *router, int64_t size, int64_t samples, int weighted) {
    Kept *self = (Kept *)kept_type->tp_alloc(kept_type, 0);
    if (self == NULL) return NULL;
    self->router = (Router *)Py_NewRef(router);
    self->samples = samples;
    self->kept.rows = PyMem_Malloc(sizeof(uint8_t *) * (size_t)(size + POOL_AHEAD + 1));
    self->kept.sizes = PyMem_Calloc((size_t)(router->routing.tables * samples) + 1, sizeof(int32_t));
    if (weighted) self->kept.weights = PyMem_Malloc(sizeof(float) * (size_t)(size + 1));
    if (!self->kept.rows || !self->kept.sizes || (weighted && !self->kept.weights)) {
        Py_DECREF(self);
        PyErr_NoMemory();
        return NULL;
    }
    return self;
}

PyDoc_STRVAR(kept_pool_doc, "pool(out, places): add the pooled rows to float32 (samples, stride)");
static PyObject *kept_pool(PyObject *object, PyObject *const *args, Py_ssize_t count) {
    static const buffer_t wanted[] = {{"out", 4, 1, 0}, {"places", 8, 0, 0}};
    Kept *self = (Kept *)object;
    const routing_t *routing = &self->router->routing;
    Py_buffer views[2];
    Py_ssize_t sizes[2];
    PyObject *result = NULL;
    int done = 1;
    if (!take_all(args, count, 2, views, sizes, wanted)) return NULL;
    const int64_t stride = self->samples ? sizes[0] / self->samples : 0;
    const place_t *places = views[1].buf;
    if (!expect("out", sizes[0], (Py_ssize_t)(stride * self->samples)) ||
        !expect("places", sizes[1], (Py_ssize_t)(3 * routing->tables)) ||
        (self->samples && places_width(places, (Py_ssize_t)routing->tables, stride) < 0))
        goto done;
    for (int64_t t = 0; routing->homes && t < routing->tables; t++)
        if (routing->homes[t].shard >= 0 &&
            !expect("dim", (Py_ssize_t)places[t].dim, (Py_ssize_t)routing->homes[t].slice.dim))
            goto done;
    Py_BEGIN_ALLOW_THREADS if (routing->homes && self->kept.size) done =
        home_pool(routing->homes, routing->tables, &self->kept, self->samples, views[0].buf, stride,
                  places);
    Py_END_ALLOW_THREADS result = done ? Py_NewRef(Py_None) : PyErr_NoMemory();
done:
    release_all(views, 2);
    return result;
}

static Py_ssize_t kept_length(PyObject *object) {
    return (Py_ssize_t)((Kept *)object)->kept.size;
}

static PyMethodDef kept_methods[] = {
    {"pool", (PyCFunction)(void (*)(void))kept_pool, METH_FASTCALL, kept_pool_doc},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot kept_slots[] = {
    {Py_tp_dealloc, kept_free},
    {Py_tp_methods, kept_methods},
    {Py_sq_length, kept_length},
    {Py_tp_doc, (void *)"Rows of a query that lie in this process; its length is their number."},
    {0, NULL},
};
static PyType_Spec kept_spec = {"erless.dlrm._kernels.Kept", sizeof(Kept), 0,
                                Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, kept_slots};

/* ---- Router ---- */

static void router_free(PyObject *object) {
    Router *self = (Router *)object;
    PyTypeObject *type = Py_TYPE(object);
    if (self->tables) release_all(self->tables, (int)self->routing.tables);
    if (self->homes)
        for (int64_t t = 0; t < self->routing.tables; t++)
            PyMem_Free((void *)self->homes[t].words);
    release_all(&self->slots, 1);
    release_all(&self->widths, 1);
    Py_XDECREF(self->poolers);
    PyMem_Free(self->homes);
    PyMem_Free(self->tables);
    PyMem_Free(self->rows);
    PyMem_Free((void *)self->routing.routes);
    type->tp_free(object);
    Py_DECREF(type);
}

/* One table's home: its shard, and the slice of that shard's pooler. */
static int router_settle(Router *self, int64_t t, PyObject *item) {
    PyObject *pooler;
    long long shard, number;
    home_t *home = &self->homes[t];
    if (!PyArg_ParseTuple(item, "LO!L", &shard, pooler_type, &pooler, &number)) return 0;
    const Pooler *held = (const Pooler *)pooler;
    if (shard < 0 || shard >= self->routing.shards ||
        self->routing.slots[shard * self->routing.tables + t] < 0) {
        PyErr_SetString(PyExc_ValueError, "homes: the shard does not hold the table");
        return 0;
    }
    if (number < 0 || number >= held->count) {
        PyErr_SetString(PyExc_ValueError, "homes: the shard has no such slice");
        return 0;
    }
    home->slice = held->slices[number];
    if (!expect("homes", (Py_ssize_t)home->slice.table_rows, (Py_ssize_t)self->rows[t])) return 0;
    if (home->slice.blocks) {
        const int64_t count = blocks_for(self->rows[t]);
        word_t *words = PyMem_Malloc(sizeof(word_t) * (size_t)(count * (INDEX_WORDS - 1)));
        if (words == NULL) {
            PyErr_NoMemory();
            return 0;
        }
        home->words = words;
        if (!home_unpack(&home->slice, words)) {
            PyErr_SetString(PyExc_ValueError, "homes: the index is beyond the stored rows");
            return 0;
        }
    }
    home->shard = shard;
    return 1;
}

static int router_homes(Router *self, PyObject *homes) {
    const Py_ssize_t tables = (Py_ssize_t)self->routing.tables;
    if (!expect("homes", PyTuple_GET_SIZE(homes), tables)) return 0;
    self->homes = PyMem_Calloc((size_t)tables + 1, sizeof(home_t));
    if (!self->homes) {
        PyErr_NoMemory();
        return 0;
    }
    self->poolers = Py_NewRef(homes);
    for (Py_ssize_t t = 0; t < tables; t++) {
        PyObject *item = PyTuple_GET_ITEM(homes, t);
        self->homes[t].shard = -1;
        if (item != Py_None && !router_settle(self, t, item)) return 0;
    }
    self->routing.homes = self->homes;
    return 1;
}

static int router_tables(Router *self, PyObject *routes) {
    const Py_ssize_t tables = PyTuple_GET_SIZE(routes);
    self->tables = PyMem_Calloc((size_t)tables + 1, sizeof(Py_buffer));
    self->rows = PyMem_Calloc((size_t)tables + 1, sizeof(int64_t));
    self->routing.routes = PyMem_Calloc((size_t)tables + 1, sizeof(uint8_t *));
    if (!self->tables || !self->rows || !self->routing.routes) {
        PyErr_NoMemory();
        return 0;
    }
    self->routing.tables = tables;
    self->routing.rows = self->rows;
    for (Py_ssize_t t = 0; t < tables; t++) {
        const Py_ssize_t rows = take(PyTuple_GET_ITEM(routes, t), &self->tables[t], 1, 0, "route");
        if (rows < 0) return 0;
        self->rows[t] = rows;
        self->routing.routes[t] = self->tables[t].buf;
    }
    return 1;
}

static int router_shards(Router *self, PyObject *slots, PyObject *widths) {
    const int64_t tables = self->routing.tables;
    const Py_ssize_t shards = take(widths, &self->widths, 8, 0, "widths");
    if (shards < 0) return 0;
    const Py_ssize_t cells = take(slots, &self->slots, 4, 0, "slots");
    if (cells < 0) return 0;
    if (shards > MAX_SHARDS) {
        PyErr_Format(PyExc_ValueError, "%zd shards, at most %d", shards, MAX_SHARDS);
        return 0;
    }
    if (!expect("slots", cells, shards * (Py_ssize_t)tables)) return 0;
    self->routing.shards = shards;
    self->routing.slots = self->slots.buf;
    self->routing.widths = self->widths.buf;
    for (Py_ssize_t s = 0; s < shards; s++) {
        const int64_t width = self->routing.widths[s];
        for (int64_t t = 0; t < tables; t++)
            if (self->routing.slots[s * tables + t] >= width) {
                PyErr_SetString(PyExc_ValueError, "slots: beyond the shard's tables");
                return 0;
            }
        if (width < 0) {
            PyErr_SetString(PyExc_ValueError, "widths: negative");
            return 0;
        }
        self->width += width;
    }
    return 1;
}

PyDoc_STRVAR(router_doc,
             "Router(routes, slots, widths, homes or None): one uint8 array per table; int32 "
             "(shards, tables); int64 (shards); per table None or (shard, its Pooler, the number "
             "of the table's slice there)");
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
    if (router_tables(self, routes) && router_shards(self, slots, widths) &&
        (homes == Py_None || router_homes(self, homes)))
        return (PyObject *)self;
    Py_DECREF(self);
    return NULL;
}

/* Whether a table pools by weighted sum at home, though there are no weights; sets an error. */
static int weights_missing(const routing_t *routing) {
    for (int64_t t = 0; routing->homes && t < routing->tables; t++)
        if (routing->homes[t].shard >= 0 && routing->homes[t].slice.pooling == WEIGHTED) {
            PyErr_SetString(PyExc_ValueError, "weights: none, but a table pools by weighted sum");
            return 1;
        }
    return 0;
}

PyDoc_STRVAR(bucketize_doc,
             "bucketize(values, weights or None, lengths, values_out, weights_out or None, "
             "lengths_out, starts) -> Kept, or a fault");
static PyObject *router_bucketize(PyObject *object, PyObject *const *args, Py_ssize_t count) {
    static const buffer_t wanted[] = {
        {"values", 0, 0, 0},     {"weights", 4, 0, 1},     {"lengths", 4, 0, 0},
        {"values_out", 0, 1, 0}, {"weights_out", 4, 1, 1}, {"lengths_out", 4, 1, 0},
        {"starts", 8, 1, 0}};
    Router *self = (Router *)object;
    Py_buffer views[7];
    Py_ssize_t sizes[7];
    Kept *kept = NULL;
    fault_t fault = {0};
    int ran = 0;
    if (!take_all(args, count, 7, views, sizes, wanted)) return NULL;
    const int64_t tables = self->routing.tables;
    const int64_t samples = tables ? sizes[2] / tables : 0;
    if (!expect("lengths", sizes[2], (Py_ssize_t)(samples * tables)) ||
        !expect("values_out", views[3].len, views[0].len) ||
        !expect("starts", sizes[6], (Py_ssize_t)self->routing.shards + 1) ||
        !expect("lengths_out", sizes[5], (Py_ssize_t)(self->width * samples)))
        goto done;
    if (views[1].obj ? !expect("weights", sizes[1], sizes[0]) ||
                           !expect("weights_out", sizes[4], sizes[0])
                     : weights_missing(&self->routing))
        goto done;
    kept = kept_new(self, self->homes ? sizes[0] : 0, samples, views[1].obj && self->homes);
    if (kept == NULL) goto done;
    const ids_t values = ids_of(&views[0]);
    Py_BEGIN_ALLOW_THREADS route(&self->routing, &values, views[1].buf, views[2].buf, samples,
                                 views[3].buf, views[4].buf, views[5].buf, views[6].buf,
                                 &kept->kept, &fault);
    Py_END_ALLOW_THREADS ran = 1;
done:
    release_all(views, 7);
    if (ran && !fault.kind) return (PyObject *)kept;
    Py_XDECREF(kept);
    return ran ? fault_tuple(&fault) : NULL;
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

int add_router(PyObject *module) {
    PyObject *kept = PyType_FromSpec(&kept_spec), *router = PyType_FromSpec(&router_spec);
    kept_type = (PyTypeObject *)kept;
    const int added = kept && router && PyModule_AddObjectRef(module, "Kept", kept) == 0 &&
                      PyModule_AddObjectRef(module, "Router", router) == 0;
    Py_XDECREF(router);
    return added;
}
