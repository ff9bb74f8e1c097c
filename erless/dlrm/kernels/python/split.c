/* A query, split by shard, for Python: its rows at home are pooled, requests to its other shards
 * written, their answers added up. */
#include "python/split.h"

#include "fast_lane/shard_channel.h"
#include "python/shard_channel.h"

static PyTypeObject *split_type;

static void split_forget(Split *self) {
    PyMem_Free(self->kept.rows);
    PyMem_Free(self->kept.weights);
    PyMem_Free(self->kept.sizes);
    self->kept = (kept_t){0};
}

static void split_free(PyObject *object) {
    Split *self = (Split *)object;
    PyTypeObject *type = Py_TYPE(object);
    split_forget(self);
    PyMem_Free((void *)self->bags.begins);
    for (int k = 0; k < 5; k++) Py_XDECREF(self->arrays[k]);
    Py_XDECREF(self->owner);
    type->tp_free(object);
    Py_DECREF(type);
}

static void *room(Split *self, int which, int64_t items, size_t size) {
    self->arrays[which] = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(size * (size_t)items));
    return self->arrays[which] ? PyBytes_AS_STRING(self->arrays[which]) : NULL;
}

/* Keep our own copy of where each table's bags begin. Returns 0 without memory. */
static int keep_bags(Split *self, const bags_t *bags) {
    self->bags = (bags_t){.tables = bags->tables, .samples = bags->samples};
    if (bags->begins == NULL) return 1;
    const size_t size = sizeof(int64_t) * (size_t)(bags->tables + 1);
    int64_t *begins = PyMem_Malloc(size);
    if (begins) memcpy(begins, bags->begins, size);
    self->bags.begins = begins;
    return begins != NULL;
}

/* Room for where each shard's bags begin, and for their lengths. Returns 0 without memory. */
static int bags_room(Split *self) {
    const routing_t *routing = self->routing;
    int64_t *starts = self->bag_starts = room(self, 4, routing->shards + 1, sizeof(int64_t));
    if (starts == NULL) return 0;
    starts[0] = 0;
    for (int64_t s = 0; s < routing->shards; s++)
        starts[s + 1] = starts[s] + bags_of_shard(routing, &self->bags, s);
    self->lengths = room(self, 1, starts[routing->shards], sizeof(int32_t));
    return self->lengths != NULL;
}

Split *split_new(PyObject *owner, const routing_t *routing, int64_t size, const bags_t *bags,
                 int weighted) {
    Split *self = (Split *)split_type->tp_alloc(split_type, 0);
    if (self == NULL) return NULL;
    self->owner = Py_NewRef(owner);
    self->routing = routing;
    self->weighted = weighted;
    self->starts = room(self, 0, routing->shards + 1, sizeof(int64_t));
    kept_t *kept = &self->kept;
    if (routing->homes) {
        const int64_t total = bags_before(bags, bags->tables);
        kept->rows = PyMem_Malloc(sizeof(uint8_t *) * (size_t)(size + POOL_AHEAD + 1));
        kept->sizes = PyMem_Calloc((size_t)total + 1, sizeof(int32_t));
        if (weighted) kept->weights = PyMem_Malloc(sizeof(float) * (size_t)(size + 1));
    }
    if (self->starts && keep_bags(self, bags) && bags_room(self) &&
        (!routing->homes || (kept->rows && kept->sizes && (!weighted || kept->weights))))
        return self;
    Py_DECREF(self);
    PyErr_NoMemory();
    return NULL;
}

int split_room(Split *self, int64_t away, int wide) {
    self->wide = wide;
    self->values = room(self, 2, away, wide ? sizeof(int64_t) : sizeof(int32_t));
    if (self->weighted) self->weights = room(self, 3, away, sizeof(float));
    return self->values && (!self->weighted || self->weights);
}

/* What shard `number` gets, which `channel` talks to. Returns 0 with an error set. */
static int bucket_of(const Split *self, PyObject *number, PyObject *channel, bucket_t *bucket) {
    const routing_t *routing = self->routing;
    const Py_ssize_t shard = PyLong_AsSsize_t(number);
    if (shard == -1 && PyErr_Occurred()) return 0;
    if (shard < 0 || shard >= routing->shards) {
        PyErr_SetString(PyExc_IndexError, "there is no such shard");
        return 0;
    }
    if (!PyObject_TypeCheck(channel, shard_channel_type)) {
        PyErr_SetString(PyExc_TypeError, "channel: not a ShardChannel");
        return 0;
    }
    const int64_t *starts = self->starts;
    *bucket = (bucket_t){{(const char *)self->values + starts[shard] * (self->wide ? 8 : 4),
                          starts[shard + 1] - starts[shard], self->wide},
                         self->lengths + self->bag_starts[shard],
                         self->bags.samples};
    return expect("channel", (Py_ssize_t)((ShardChannel *)channel)->channel.tables,
                  (Py_ssize_t)routing->widths[shard]);
}

PyDoc_STRVAR(touched_doc, "touched() -> the shards that get ids, as a tuple");
static PyObject *split_touched(PyObject *object, PyObject *unused) {
    const Split *self = (const Split *)object;
    const int64_t *starts = self->starts;
    Py_ssize_t count = 0, at = 0;
    (void)unused;
    for (int64_t s = 0; s < self->routing->shards; s++) count += starts[s + 1] > starts[s];
    PyObject *touched = PyTuple_New(count);
    for (int64_t s = 0; touched && at < count; s++)
        if (starts[s + 1] > starts[s]) {
            PyObject *number = PyLong_FromLongLong(s);
            if (number == NULL) Py_CLEAR(touched);
            else PyTuple_SET_ITEM(touched, at++, number);
        }
    return touched;
}

PyDoc_STRVAR(
    build_request_doc,
    "build_request(shard, channel, left_ms, trace or None) -> the request, in one piece, or "
    "None: it has weights, its tables differ in bags, or it does not fit the forms");
static PyObject *split_build_request(PyObject *object, PyObject *const *args, Py_ssize_t count) {
    const Split *self = (const Split *)object;
    char text[MOST_HEAD];
    bucket_t bucket;
    if (!expect("arguments", count, 4) || !bucket_of(self, args[0], args[1], &bucket)) return NULL;
    const long long left_ms = PyLong_AsLongLong(args[2]);
    const char *trace = args[3] == Py_None ? NULL : PyBytes_AsString(args[3]);
    if (PyErr_Occurred()) return NULL;
    const int64_t size =
        self->weighted || self->bags.begins
            ? 0
            : request_write(&((ShardChannel *)args[1])->channel, &bucket, left_ms, trace, text);
    if (size == 0) Py_RETURN_NONE;
    const size_t ids = (size_t)bucket.values.size * id_width(&bucket.values);
    const size_t bags =
        (size_t)(((ShardChannel *)args[1])->channel.tables * self->bags.samples) * sizeof(int32_t);
    PyObject *request = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(size + ids + bags));
    if (request == NULL) return NULL;
    char *at = PyBytes_AS_STRING(request);
    memcpy(at, text, (size_t)size);
    memcpy(at + size, bucket.values.data, ids);
    memcpy(at + size + ids, bucket.lengths, bags);
    return request;
}

PyDoc_STRVAR(add_answer_doc,
             "add_answer(shard, channel, buffer, begin, end, last, out) -> (milliseconds, "
             "ANSWER_INCOMPLETE or ANSWER_GENERAL; "
             "where it ends): add the answer that begins in buffer[begin:end] to float32 `out`; "
             "fast_lane/shard_channel.h, answer_add");
static PyObject *split_add_answer(PyObject *object, PyObject *const *args, Py_ssize_t count) {
    static const buffer_t wanted[] = {{"buffer", 1, 0, 0}, {"out", 4, 1, 0}};
    const Split *self = (const Split *)object;
    PyObject *result = NULL;
    Py_buffer views[2];
    Py_ssize_t sizes[2];
    bucket_t bucket;
    if (!expect("arguments", count, 7) || !bucket_of(self, args[0], args[1], &bucket)) return NULL;
    const Py_ssize_t begin = PyLong_AsSsize_t(args[3]), end = PyLong_AsSsize_t(args[4]);
    const int last = PyObject_IsTrue(args[5]);
    if (PyErr_Occurred()) return NULL;
    PyObject *const both[] = {args[2], args[6]};
    if (!take_all(both, 2, 2, views, sizes, wanted)) return NULL;
    const shard_channel_t *channel = &((ShardChannel *)args[1])->channel;
    const bags_t bags = {NULL, channel->tables, bucket.samples, NULL};
    if (begin < 0 || begin > end || end > sizes[0])
        PyErr_SetString(PyExc_ValueError, "buffer: end is beyond it, or begin beyond end");
    else if (self->bags.begins) result = Py_BuildValue("in", ANSWER_GENERAL, begin);
    else if (places_fit(channel->places, &bags, sizes[1])) {
        const char *whole = views[0].buf, *at = whole + begin;
        const int64_t outcome =
            answer_add(channel, &bucket, &at, whole + end, whole + sizes[0], last, views[1].buf);
        result = Py_BuildValue("Ln", (long long)outcome, (Py_ssize_t)(at - whole));
    }
    release_all(views, 2);
    return result;
}

PyDoc_STRVAR(pool_doc, "pool(out, places): add the rows at home to float32 `out`, once");
static PyObject *split_pool(PyObject *object, PyObject *const *args, Py_ssize_t count) {
    static const buffer_t wanted[] = {{"out", 4, 1, 0}, {"places", 8, 0, 0}};
    Split *self = (Split *)object;
    const routing_t *routing = self->routing;
    Py_buffer views[2];
    Py_ssize_t sizes[2];
    PyObject *result = NULL;
    int done = 1;
    if (!take_all(args, count, 2, views, sizes, wanted)) return NULL;
    const place_t *places = views[1].buf;
    if (!expect("places", sizes[1], (Py_ssize_t)(4 * routing->tables)) ||
        !places_fit(places, &self->bags, sizes[0]))
        goto done;
    for (int64_t t = 0; routing->homes && t < routing->tables; t++)
        if (routing->homes[t].shard >= 0 &&
            !expect("dim", (Py_ssize_t)places[t].dim, (Py_ssize_t)routing->homes[t].slice.dim))
            goto done;
    kept_t kept = self->kept; /* ours alone: another call must not find it */
    self->kept = (kept_t){0};
    Py_BEGIN_ALLOW_THREADS
    if (kept.size) done = home_pool(routing->homes, &self->bags, &kept, views[0].buf, places);
    Py_END_ALLOW_THREADS
    self->kept = kept;
    split_forget(self);
    result = done ? Py_NewRef(Py_None) : PyErr_NoMemory();
done:
    release_all(views, 2);
    return result;
}

static PyObject *split_kept(PyObject *object, void *closure) {
    (void)closure;
    return PyLong_FromLongLong(((Split *)object)->at_home);
}

static PyObject *split_wide(PyObject *object, void *closure) {
    (void)closure;
    return PyBool_FromLong(((Split *)object)->wide);
}

PyDoc_STRVAR(arrays_doc,
             "arrays() -> bytes of starts (int64), lengths (int32), values (int32, or "
             "int64 where `wide`), weights (float32) or None, bag_starts (int64)");
static PyObject *split_arrays(PyObject *object, PyObject *unused) {
    const Split *self = (const Split *)object;
    (void)unused;
    return PyTuple_Pack(5, self->arrays[0], self->arrays[1], self->arrays[2],
                        self->arrays[3] ? self->arrays[3] : Py_None, self->arrays[4]);
}

static PyMethodDef split_methods[] = {
    {"arrays", split_arrays, METH_NOARGS, arrays_doc},
    {"touched", split_touched, METH_NOARGS, touched_doc},
    {"pool", (PyCFunction)(void (*)(void))split_pool, METH_FASTCALL, pool_doc},
    {"build_request", (PyCFunction)(void (*)(void))split_build_request, METH_FASTCALL,
     build_request_doc},
    {"add_answer", (PyCFunction)(void (*)(void))split_add_answer, METH_FASTCALL, add_answer_doc},
    {NULL, NULL, 0, NULL},
};
static PyGetSetDef split_facts[] = {
    {"kept", split_kept, NULL, "Rows that were found at home.", NULL},
    {"wide", split_wide, NULL, "Whether values are int64.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyType_Slot split_slots[] = {
    {Py_tp_dealloc, split_free},
    {Py_tp_methods, split_methods},
    {Py_tp_getset, split_facts},
    {Py_tp_doc, (void *)"A query's ids by shard (Router.bucketize)."},
    {0, NULL},
};
static PyType_Spec split_spec = {"erless.dlrm._kernels.Split", sizeof(Split), 0,
                                 Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                                 split_slots};

int add_split(PyObject *module) {
    PyObject *type = PyType_FromSpec(&split_spec);
    if (type == NULL) return 0;
    split_type = (PyTypeObject *)type;
    return PyModule_AddObjectRef(module, "Split", type) == 0;
}
