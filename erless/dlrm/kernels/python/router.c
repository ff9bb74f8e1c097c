/* Bucketize, for Python. */
#include "python/router.h"

#include "arithmetic/index.h"
#include "python/pooler.h"
#include "python/split.h"

typedef struct {
    PyObject_HEAD
    routing_t routing;
    Py_buffer *tables, slots, widths;
    PyObject *poolers; /* keeps the homes' rows alive */
    PyObject *origin;  /* whose tables, slots and words these are; NULL: our own */
    home_t *homes;
    int64_t *rows;
} Router;

/* Whether an earlier table has table t's words: several read the same rows. */
static int words_of_another(const home_t *homes, int64_t t) {
    for (int64_t earlier = 0; earlier < t; earlier++)
        if (homes[earlier].words == homes[t].words) return 1;
    return 0;
}

static void router_free(PyObject *object) {
    Router *self = (Router *)object;
    PyTypeObject *type = Py_TYPE(object);
    if (self->origin) {
        Py_XDECREF(self->poolers);
        PyMem_Free(self->homes);
        Py_DECREF(self->origin);
        type->tp_free(object);
        Py_DECREF(type);
        return;
    }
    if (self->tables) release_all(self->tables, (int)self->routing.tables);
    if (self->homes)
        for (int64_t t = 0; t < self->routing.tables; t++)
            if (!words_of_another(self->homes, t)) PyMem_Free((void *)self->homes[t].words);
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

/* Whether the words of one serve the other: their rows may differ, and where they lie. */
static int same_index(const slice_t *a, const slice_t *b) {
    return a->blocks == b->blocks && a->row_bytes == b->row_bytes &&
           a->table_rows == b->table_rows && a->stored == b->stored && a->indexed == b->indexed;
}

/* One table's home: its shard, and the slice of that shard's pooler. */
static int router_home(Router *self, int64_t t, PyObject *item) {
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
    for (int64_t u = 0; u < t && home->words == NULL; u++) /* the same slice, unpacked already */
        if (same_index(&self->homes[u].slice, &home->slice)) home->words = self->homes[u].words;
    if (home_needs_words(&home->slice) && home->words == NULL) {
        word_t *words = PyMem_Malloc(sizeof(word_t) * (size_t)home_words(&home->slice));
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
        if (item != Py_None && !router_home(self, t, item)) return 0;
    }
    self->routing.homes = self->homes;
    return 1;
}

/* Table t's route: (codes, bits, rows, holders). Returns its rows, or -1 with an error set. */
static int64_t router_route(Router *self, Py_ssize_t t, PyObject *item, route_t *route) {
    PyObject *codes;
    long long rows;
    const char *holders;
    Py_ssize_t count;
    if (!PyArg_ParseTuple(item, "OiLy#", &codes, &route->bits, &rows, &holders, &count)) return -1;
    if ((route->bits & (route->bits - 1)) || route->bits < 0 || route->bits > 8 || rows < 0 ||
        rows > MAX_ROWS || (route->bits < 8 && (count < 1 || count > 1 << route->bits))) {
        PyErr_SetString(PyExc_ValueError, "route: bits, rows and holders do not fit");
        return -1;
    }
    memset(route->holders, MAX_SHARDS, sizeof(route->holders));
    if (route->bits < 8) memcpy(route->holders, holders, (size_t)count);
    const Py_ssize_t size = take(codes, &self->tables[t], 1, 0, "route");
    if (size < 0 || !expect("route", size, (Py_ssize_t)((rows * route->bits + 7) / 8))) return -1;
    route->codes = self->tables[t].buf;
    return rows;
}

static int router_tables(Router *self, PyObject *routes) {
    const Py_ssize_t tables = PyTuple_GET_SIZE(routes);
    self->tables = PyMem_Calloc((size_t)tables + 1, sizeof(Py_buffer));
    self->rows = PyMem_Calloc((size_t)tables + 1, sizeof(int64_t));
    route_t *made = PyMem_Calloc((size_t)tables + 1, sizeof(route_t));
    self->routing.routes = made;
    if (!self->tables || !self->rows || !made) {
        PyErr_NoMemory();
        return 0;
    }
    self->routing.tables = tables;
    self->routing.rows = self->rows;
    self->routing.narrow = 1;
    for (Py_ssize_t t = 0; t < tables; t++) {
        const int64_t rows = router_route(self, t, PyTuple_GET_ITEM(routes, t), &made[t]);
        if (rows < 0) return 0;
        self->rows[t] = rows;
        self->routing.narrow = self->routing.narrow && rows <= INT32_MAX;
    }
    return 1;
}

/* Whether the slots of a shard that holds `width` tables are 0 … width - 1, in the tables' order;
 * sets an error where not. */
static int slots_fit(const int32_t *slots, int64_t tables, int64_t width) {
    int64_t next = 0;
    for (int64_t t = 0; t < tables; t++)
        if (slots[t] >= 0 && slots[t] != next++) {
            PyErr_SetString(PyExc_ValueError, "slots: beyond the shard's tables, or out of order");
            return 0;
        }
    return expect("slots of a shard", (Py_ssize_t)next, (Py_ssize_t)width);
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
    if (!expect_product("slots", cells, shards, tables)) return 0;
    self->routing.shards = shards;
    self->routing.slots = self->slots.buf;
    self->routing.widths = self->widths.buf;
    for (Py_ssize_t s = 0; s < shards; s++)
        if (!slots_fit(self->routing.slots + s * tables, tables, self->routing.widths[s])) return 0;
    return 1;
}

PyDoc_STRVAR(router_doc,
             "Router(routes, slots, widths, homes or None): per table (codes, bits, rows, holders) "
             "as of route_t; int32 (shards, tables); int64 (shards); per table None or (shard, its "
             "Pooler, the number of the table's slice there). Row ids leave as int32 where all "
             "fit.");
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

PyDoc_STRVAR(bucketize_doc,
             "bucketize(values, weights or None, lengths, begins or None) -> Split, or a fault; "
             "begins (tables + 1): where each table's bags begin, else all have as many");
static PyObject *router_bucketize(PyObject *object, PyObject *const *args, Py_ssize_t count) {
    static const buffer_t wanted[] = {
        {"values", 0, 0, 0}, {"weights", 4, 0, 1}, {"lengths", 4, 0, 0}, {"begins", 8, 0, 1}};
    Router *self = (Router *)object;
    const routing_t *routing = &self->routing;
    Py_buffer views[4];
    Py_ssize_t sizes[4];
    bags_t bags;
    Split *result = NULL;
    split_t split = {0};
    fault_t fault = {0};
    if (!take_all(args, count, 4, views, sizes, wanted)) return NULL;
    const int weighted = views[1].obj != NULL;
    if (lengths_taken(&views[2], &views[3], routing->tables, &bags) &&
        (!weighted || expect("weights", sizes[1], sizes[0])))
        result = split_new(object, routing, sizes[0], &bags, weighted);
    if (result != NULL) {
        const ids_t values = ids_of(&views[0]);
        int64_t away;
        Py_BEGIN_ALLOW_THREADS
        away = route_count(routing, &values, views[1].buf, &bags, result->lengths, result->starts,
                           &result->kept, &split, &fault);
        Py_END_ALLOW_THREADS
        result->at_home = result->kept.size;
        if (!fault.kind && split_room(result, away, split.wide)) {
            Py_BEGIN_ALLOW_THREADS
            route_place(routing, &split, result->starts, result->values, result->weights);
            Py_END_ALLOW_THREADS
        } else Py_CLEAR(result);
    }
    route_close(&split);
    release_all(views, 4);
    if (result) return (PyObject *)result;
    return fault.kind ? fault_tuple(&fault) : NULL;
}

PyDoc_STRVAR(repatched_doc,
             "repatched(homes) -> Router: the same tables, with other rows at home; as many and "
             "by the same index as those of this Router");
static PyObject *router_repatched(PyObject *object, PyObject *homes) {
    Router *origin = (Router *)object;
    if (!PyTuple_Check(homes) || origin->homes == NULL) {
        PyErr_SetString(PyExc_ValueError, "homes: not a tuple, or there were none");
        return NULL;
    }
    Router *self = (Router *)Py_TYPE(object)->tp_alloc(Py_TYPE(object), 0);
    if (self == NULL) return NULL;
    self->origin = Py_NewRef(origin->origin ? origin->origin : object);
    self->routing = origin->routing;
    self->rows = origin->rows;
    self->poolers = Py_NewRef(homes);
    self->homes = PyMem_Calloc((size_t)self->routing.tables + 1, sizeof(home_t));
    int fits = self->homes != NULL &&
               expect("homes", PyTuple_GET_SIZE(homes), (Py_ssize_t)self->routing.tables);
    if (self->homes == NULL) PyErr_NoMemory();
    for (int64_t t = 0; fits && t < self->routing.tables; t++) {
        PyObject *item = PyTuple_GET_ITEM(homes, (Py_ssize_t)t);
        self->homes[t].shard = -1;
        self->homes[t].words = origin->homes[t].words;
        if (item != Py_None) fits = router_home(self, t, item);
        if (fits &&
            (self->homes[t].shard != origin->homes[t].shard ||
             (item != Py_None && !same_index(&self->homes[t].slice, &origin->homes[t].slice)))) {
            PyErr_SetString(PyExc_ValueError, "homes: not those of this router");
            fits = 0;
        }
    }
    self->routing.homes = self->homes;
    if (fits) return (PyObject *)self;
    Py_DECREF(self);
    return NULL;
}

static PyMethodDef router_methods[] = {
    {"repatched", router_repatched, METH_O, repatched_doc},
    {"bucketize", (PyCFunction)(void (*)(void))router_bucketize, METH_FASTCALL, bucketize_doc},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot router_slots[] = {
    {Py_tp_new, router_new},
    {Py_tp_dealloc, router_free},
    {Py_tp_methods, router_methods},
    {Py_tp_doc, (void *)router_doc},
    {0, NULL},
};
static PyType_Spec router_spec = {"erless.dlrm._kernels.Router", sizeof(Router), 0,
                                  Py_TPFLAGS_DEFAULT, router_slots};

int add_router(PyObject *module) {
    PyObject *router = PyType_FromSpec(&router_spec);
    const int added = router && PyModule_AddObjectRef(module, "Router", router) == 0;
    Py_XDECREF(router);
    return added;
}
