/* Gather-pool of rows on a disk, for Python. */
#include "python/disk_pooler.h"

#include <fcntl.h>
#include <unistd.h>

#include "arithmetic/index.h"
#include "disk/checksum.h"
#include "disk/lookup.h"
#include "python/patch.h"

/* The slices of one shard. */
typedef struct {
    PyObject_HEAD
    disk_t disk;
    Py_buffer *views; /* blocks and checksums of each slice */
    PyThread_type_lock lock;
} DiskPooler;

/* The slices of a shard with rows that were changed or added, which lie in memory. */
typedef struct {
    PyObject_HEAD
    PyObject *pooler, *given; /* kept alive, as are the patches */
    slice_t *slices;
} DiskChanges;

/* A query that waits for its rows. */
typedef struct {
    PyObject_HEAD
    DiskPooler *pooler;
    PyObject *changes; /* or NULL */
    lookup_t *lookup;  /* NULL once it is finished */
    Py_buffer views[6];
} DiskQuery;

static PyTypeObject *query_type, *changes_type;

/* ---- construction ---- */

static void pooler_free(PyObject *object) {
    DiskPooler *self = (DiskPooler *)object;
    PyTypeObject *type = Py_TYPE(object);
    disk_t *disk = &self->disk;
    if (disk->engine) engine_close(disk->engine);
    if (disk->caches) disk_close_caches(disk);
    for (int64_t s = 0; disk->extents && s < disk->count; s++)
        if (disk->extents[s].fd >= 0) close(disk->extents[s].fd);
    if (self->views) release_all(self->views, (int)(2 * disk->count));
    if (self->lock) PyThread_free_lock(self->lock);
    PyMem_Free(self->views);
    PyMem_Free(disk->slices);
    PyMem_Free(disk->extents);
    PyMem_Free(disk->cache_of);
    PyMem_Free(disk->caches);
    type->tp_free(object);
    Py_DECREF(type);
}

/* Whether the numbers of a slice are possible; sets an error where not. */
static int slice_fits(const slice_t *slice, int64_t begin) {
    const int fits = slice->table_rows >= 1 && slice->table_rows <= MAX_ROWS && slice->dim >= 1 &&
                     slice->dim <= MAX_DIM && slice->precision >= FP32 &&
                     slice->precision <= INT4 && slice->pooling >= SUM && slice->pooling <= MEAN &&
                     slice->stored >= 1 && slice->stored <= slice->table_rows &&
                     slice->stored < MOST_DISK_ROWS && begin >= 0;
    int64_t bytes;
    if (fits &&
        !__builtin_mul_overflow(slice->stored, stored_row_bytes(slice->precision, slice->dim),
                                &bytes) &&
        bytes <= INT64_MAX - DISK_BLOCK - begin)
        return 1;
    PyErr_SetString(PyExc_ValueError, "slice: a field is out of range");
    return 0;
}

static int add_slice(DiskPooler *self, int64_t s, PyObject *item) {
    PyObject *blocks, *checksums;
    Py_buffer *views = self->views + 2 * s;
    slice_t *slice = &self->disk.slices[s];
    extent_t *extent = &self->disk.extents[s];
    long long begin, stored, table_rows, dim;
    int fd;
    if (!PyArg_ParseTuple(item, "iLOOLLLii", &fd, &begin, &blocks, &checksums, &stored, &table_rows,
                          &dim, &slice->precision, &slice->pooling))
        return 0;
    slice->stored = stored;
    slice->table_rows = table_rows;
    slice->dim = dim;
    slice->indexed = table_rows;
    if (!slice_fits(slice, begin)) return 0;
    slice->row_bytes = stored_row_bytes(slice->precision, dim);
    extent->begin = begin;
    extent->bytes = slice->stored * slice->row_bytes;
    extent->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (extent->fd < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        return 0;
    }
    if (blocks != Py_None) {
        const Py_ssize_t words = take(blocks, &views[0], 8, 0, "blocks");
        if (words < 0 ||
            !expect("blocks", words, (Py_ssize_t)(INDEX_WORDS * blocks_for(table_rows))))
            return 0;
        slice->blocks = views[0].buf;
    } else if (!expect("rows", (Py_ssize_t)stored, (Py_ssize_t)table_rows)) return 0;
    if (checksums == Py_None) return 1;
    const Py_ssize_t count = take(checksums, &views[1], 4, 0, "checksums");
    if (count < 0) return 0;
    if (begin % DISK_BLOCK) {
        PyErr_SetString(PyExc_ValueError, "checksums: the rows do not begin at a block");
        return 0;
    }
    extent->checksums = views[1].buf;
    return expect("checksums", count, (Py_ssize_t)((extent->bytes + DISK_BLOCK - 1) / DISK_BLOCK));
}

/* A row and the block that it begins in fit a buffer; several neighbours, too. */
static int64_t buffer_bytes_for(const disk_t *disk) {
    int64_t widest = 0;
    for (int64_t s = 0; s < disk->count; s++)
        if (disk->slices[s].row_bytes > widest) widest = disk->slices[s].row_bytes;
    const int64_t least = (widest + 2 * DISK_BLOCK - 1) / DISK_BLOCK * DISK_BLOCK;
    return least < 4 * DISK_BLOCK ? 4 * DISK_BLOCK : least;
}

static int allocate(DiskPooler *self, Py_ssize_t count) {
    disk_t *disk = &self->disk;
    disk->slices = PyMem_Calloc((size_t)count + 1, sizeof(*disk->slices));
    disk->extents = PyMem_Calloc((size_t)count + 1, sizeof(*disk->extents));
    disk->cache_of = PyMem_Calloc((size_t)count + 1, sizeof(*disk->cache_of));
    disk->caches = PyMem_Calloc((size_t)count + 1, sizeof(*disk->caches));
    self->views = PyMem_Calloc(2 * (size_t)count + 1, sizeof(*self->views));
    self->lock = PyThread_allocate_lock();
    if (!disk->slices || !disk->extents || !disk->cache_of || !disk->caches || !self->views ||
        !self->lock) {
        PyErr_NoMemory();
        return 0;
    }
    for (Py_ssize_t s = 0; s < count; s++) disk->extents[s].fd = -1;
    disk->count = count;
    return 1;
}

PyDoc_STRVAR(pooler_doc,
             "DiskPooler(slices, engine, depth, cache_bytes, most_waiting): a tuple of (file "
             "descriptor, where the rows begin, blocks or None, checksums or None, stored rows, "
             "table rows, dim, precision, pooling). OSError: the engine cannot be had");
static PyObject *pooler_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    PyObject *slices;
    int kind, depth, error = 0;
    long long cache_bytes, most_waiting;
    (void)kwargs;
    if (!PyArg_ParseTuple(args, "O!iiLL", &PyTuple_Type, &slices, &kind, &depth, &cache_bytes,
                          &most_waiting))
        return NULL;
    const Py_ssize_t count = PyTuple_GET_SIZE(slices);
    if (count < 1 || count > MOST_SLICES || kind < ENGINE_AUTO || kind > ENGINE_URING ||
        depth < 1 || depth > 4096 || cache_bytes < 0 || most_waiting < 1) {
        PyErr_SetString(PyExc_ValueError, "an argument is out of range");
        return NULL;
    }
    DiskPooler *self = (DiskPooler *)type->tp_alloc(type, 0);
    if (self == NULL) return NULL;
    int made = allocate(self, count);
    for (Py_ssize_t s = 0; made && s < count; s++)
        made = add_slice(self, s, PyTuple_GET_ITEM(slices, s));
    if (made && !disk_open_caches(&self->disk, cache_bytes)) {
        PyErr_NoMemory();
        made = 0;
    }
    if (made) {
        self->disk.buffer_bytes = buffer_bytes_for(&self->disk);
        const engine_options_t options = {kind, depth, self->disk.buffer_bytes, most_waiting};
        self->disk.engine = engine_open(&options, &error);
        if (self->disk.engine != NULL) return (PyObject *)self;
        errno = error;
        PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_DECREF(self);
    return NULL;
}

/* ---- changed rows ---- */

static void changes_free(PyObject *object) {
    DiskChanges *self = (DiskChanges *)object;
    PyTypeObject *type = Py_TYPE(object);
    PyMem_Free(self->slices);
    Py_XDECREF(self->given);
    Py_XDECREF(self->pooler);
    type->tp_free(object);
    Py_DECREF(type);
}

static int change_slice(slice_t *slice, PyObject *item) {
    PyObject *patch;
    long long table_rows;
    if (!PyArg_ParseTuple(item, "OL", &patch, &table_rows)) return 0;
    if (table_rows < slice->indexed || table_rows > MAX_ROWS ||
        (patch == Py_None && table_rows > slice->indexed)) {
        PyErr_SetString(PyExc_ValueError, "table rows: out of range");
        return 0;
    }
    slice->table_rows = table_rows;
    return patch == Py_None ||
           (slice->patch = patch_of(patch, slice->stored, slice->row_bytes)) != NULL;
}

PyDoc_STRVAR(changed_doc,
             "changed(changes) -> DiskChanges, for begin: for each slice a Patch or None, and how "
             "many rows its table has");
static PyObject *pooler_changed(PyObject *object, PyObject *given) {
    const disk_t *disk = &((DiskPooler *)object)->disk;
    if (!PyTuple_Check(given) ||
        !expect("changes", PyTuple_GET_SIZE(given), (Py_ssize_t)disk->count)) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "changes: not a tuple");
        return NULL;
    }
    DiskChanges *self = (DiskChanges *)changes_type->tp_alloc(changes_type, 0);
    if (self == NULL) return NULL;
    self->pooler = Py_NewRef(object);
    self->given = Py_NewRef(given);
    self->slices = PyMem_Calloc((size_t)disk->count, sizeof(*self->slices));
    int made = self->slices != NULL;
    if (!made) PyErr_NoMemory();
    for (int64_t s = 0; made && s < disk->count; s++) {
        self->slices[s] = disk->slices[s];
        made = change_slice(&self->slices[s], PyTuple_GET_ITEM(given, (Py_ssize_t)s));
    }
    if (made) return (PyObject *)self;
    Py_DECREF(self);
    return NULL;
}

static PyType_Slot changes_slots[] = {{Py_tp_dealloc, changes_free}, {0, NULL}};
static PyType_Spec changes_spec = {"erless.dlrm._kernels.DiskChanges", sizeof(DiskChanges), 0,
                                   Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                                   changes_slots};

/* ---- a query ---- */

/* Whether the columns lie within a row of `stride`, or the packed bags within `floats`. */
static int answer_fits(const disk_t *disk, const ask_t *ask, Py_ssize_t floats,
                       Py_ssize_t columns) {
    if (ask->packed) {
        const int64_t needed = packed_size(disk->slices, &ask->bags);
        if (floats >= needed) return 1;
        PyErr_Format(PyExc_ValueError, "out: %zd items, %lld needed", floats, (long long)needed);
        return 0;
    }
    if (ask->bags.begins) {
        PyErr_SetString(PyExc_ValueError, "columns: only where all slices have as many bags");
        return 0;
    }
    if (!expect_product("out", floats, ask->stride, ask->bags.samples) ||
        !expect("columns", columns, (Py_ssize_t)disk->count))
        return 0;
    for (int64_t s = 0; ask->bags.samples && s < disk->count; s++)
        if (ask->columns[s] < 0 || disk->slices[s].dim > ask->stride ||
            ask->columns[s] > ask->stride - disk->slices[s].dim) {
            PyErr_SetString(PyExc_ValueError, "columns: beyond the row of `out`");
            return 0;
        }
    return 1;
}

/* Take the arguments of `begin`. Returns 0 with an error set and nothing taken. */
static int take_ask(const disk_t *disk, const slice_t *slices, PyObject *const *args,
                    Py_ssize_t count, Py_buffer *views, ask_t *ask) {
    static const buffer_t wanted[] = {{"values", 0, 0, 0},  {"weights", 4, 0, 1},
                                      {"lengths", 4, 0, 0}, {"out", 4, 1, 0},
                                      {"columns", 8, 0, 1}, {"begins", 8, 0, 1}};
    Py_ssize_t sizes[6];
    if (!take_all(args, count, 6, views, sizes, wanted)) return 0;
    *ask = (ask_t){.slices = slices,
                   .values = ids_of(&views[0]),
                   .weights = views[1].buf,
                   .out = views[3].buf,
                   .columns = views[4].buf,
                   .packed = views[4].obj == NULL};
    int fits = lengths_taken(&views[2], &views[5], disk->count, &ask->bags) &&
               (!views[1].obj || expect("weights", sizes[1], sizes[0]));
    ask->stride = ask->bags.samples ? sizes[3] / ask->bags.samples : 0;
    fits = fits && answer_fits(disk, ask, sizes[3], sizes[4]);
    if (!fits) release_all(views, 6);
    return fits;
}

PyDoc_STRVAR(begin_doc,
             "begin(values, weights or None, lengths, out, columns or None, begins or None, "
             "DiskChanges or None) -> as Pooler.pool, where no row has to be read; a DiskQuery "
             "that has `out` filled in by "
             "finish(); None: too many reads wait");
static PyObject *pooler_begin(PyObject *object, PyObject *const *args, Py_ssize_t count) {
    DiskPooler *self = (DiskPooler *)object;
    DiskQuery *query = (DiskQuery *)query_type->tp_alloc(query_type, 0);
    ask_t ask;
    fault_t fault = {0};
    int64_t written = 0;
    int outcome;
    if (query == NULL) return NULL;
    const slice_t *slices = self->disk.slices;
    PyObject *changes = count == 7 && args[6] != Py_None ? args[6] : NULL;
    if (changes != NULL) {
        if (!PyObject_TypeCheck(changes, changes_type) ||
            ((DiskChanges *)changes)->pooler != object) {
            PyErr_SetString(PyExc_TypeError, "changes: neither None nor this pooler's");
            Py_DECREF(query);
            return NULL;
        }
        slices = ((DiskChanges *)changes)->slices;
        query->changes = Py_NewRef(changes);
    }
    if (!take_ask(&self->disk, slices, args, count == 7 ? 6 : count, query->views, &ask)) {
        memset(query->views, 0, sizeof(query->views));
        Py_DECREF(query);
        return NULL;
    }
    query->pooler = (DiskPooler *)Py_NewRef(self);
    Py_BEGIN_ALLOW_THREADS
    PyThread_acquire_lock(self->lock, 1);
    outcome = disk_begin(&self->disk, &ask, &query->lookup, &written, &fault);
    PyThread_release_lock(self->lock);
    Py_END_ALLOW_THREADS
    if (outcome == DISK_WAITS) return (PyObject *)query;
    Py_DECREF(query);
    if (outcome == DISK_BUSY) Py_RETURN_NONE;
    return outcome == DISK_FAULT ? fault_tuple(&fault) : PyLong_FromLongLong(written);
}

PyDoc_STRVAR(event_doc, "event() -> a file descriptor that is readable when a query is done");
static PyObject *pooler_event(PyObject *object, PyObject *unused) {
    (void)unused;
    return PyLong_FromLong(engine_event(((DiskPooler *)object)->disk.engine));
}

PyDoc_STRVAR(engine_doc, "engine() -> (ENGINE_PREAD or ENGINE_URING, errno of io_uring or 0)");
static PyObject *pooler_engine(PyObject *object, PyObject *unused) {
    int refusal;
    (void)unused;
    const int kind = engine_kind(((DiskPooler *)object)->disk.engine, &refusal);
    return Py_BuildValue("ii", kind, refusal);
}

PyDoc_STRVAR(counts_doc,
             "counts() -> (gathers from the cache, rows read, reads, bytes read, reads that "
             "failed, queries refused, reads waiting now)");
static PyObject *pooler_counts(PyObject *object, PyObject *unused) {
    const disk_t *disk = &((DiskPooler *)object)->disk;
    const engine_counts_t counts = engine_counts(disk->engine);
    (void)unused;
    return Py_BuildValue("LLLLLLL", (long long)disk->hits, (long long)disk->misses,
                         (long long)counts.reads, (long long)counts.bytes, (long long)counts.faults,
                         (long long)counts.refused, (long long)counts.waiting);
}

static PyMethodDef pooler_methods[] = {
    {"begin", (PyCFunction)(void (*)(void))pooler_begin, METH_FASTCALL, begin_doc},
    {"changed", pooler_changed, METH_O, changed_doc},
    {"event", pooler_event, METH_NOARGS, event_doc},
    {"engine", pooler_engine, METH_NOARGS, engine_doc},
    {"counts", pooler_counts, METH_NOARGS, counts_doc},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot pooler_slots[] = {
    {Py_tp_new, pooler_new},
    {Py_tp_dealloc, pooler_free},
    {Py_tp_methods, pooler_methods},
    {Py_tp_doc, (void *)pooler_doc},
    {0, NULL},
};
static PyType_Spec pooler_spec = {"erless.dlrm._kernels.DiskPooler", sizeof(DiskPooler), 0,
                                  Py_TPFLAGS_DEFAULT, pooler_slots};

/* ---- a query that waits ---- */

static void query_free(PyObject *object) {
    DiskQuery *self = (DiskQuery *)object;
    PyTypeObject *type = Py_TYPE(object);
    if (self->lookup) { /* threads of the engine still write to it */
        Py_BEGIN_ALLOW_THREADS
        engine_wait(self->pooler->disk.engine, &self->lookup->batch);
        Py_END_ALLOW_THREADS
        lookup_free(self->lookup);
    }
    release_all(self->views, 6);
    Py_XDECREF(self->changes);
    Py_XDECREF(self->pooler);
    type->tp_free(object);
    Py_DECREF(type);
}

PyDoc_STRVAR(done_doc, "done() -> whether all its rows were read, or one could not be");
static PyObject *query_done(PyObject *object, PyObject *unused) {
    const DiskQuery *self = (const DiskQuery *)object;
    (void)unused;
    if (self->lookup == NULL) Py_RETURN_TRUE;
    return PyBool_FromLong(engine_done(self->pooler->disk.engine, &self->lookup->batch));
}

PyDoc_STRVAR(finish_doc,
             "finish() -> floats written, once; it waits for the rows. Or what could not be read: "
             "(READ_..., slice, where in its file, errno)");
static PyObject *query_finish(PyObject *object, PyObject *unused) {
    DiskQuery *self = (DiskQuery *)object;
    DiskPooler *pooler = self->pooler;
    lookup_t *lookup = self->lookup;
    fault_t fault = {0};
    int64_t written = 0;
    (void)unused;
    if (lookup == NULL) {
        PyErr_SetString(PyExc_ValueError, "the query is finished");
        return NULL;
    }
    self->lookup = NULL;
    const batch_t *batch = &lookup->batch;
    Py_BEGIN_ALLOW_THREADS
    engine_wait(pooler->disk.engine, &lookup->batch);
    PyThread_acquire_lock(pooler->lock, 1);
    if (!batch->fault) written = disk_finish(&pooler->disk, lookup, &fault);
    PyThread_release_lock(pooler->lock);
    Py_END_ALLOW_THREADS
    PyObject *result;
    if (batch->fault)
        result =
            Py_BuildValue("iLLi", batch->fault, (long long)(batch->extent - pooler->disk.extents),
                          (long long)batch->at, batch->error);
    else result = fault.kind ? fault_tuple(&fault) : PyLong_FromLongLong(written);
    lookup_free(lookup);
    return result;
}

static PyMethodDef query_methods[] = {
    {"done", query_done, METH_NOARGS, done_doc},
    {"finish", query_finish, METH_NOARGS, finish_doc},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot query_slots[] = {
    {Py_tp_dealloc, query_free},
    {Py_tp_methods, query_methods},
    {0, NULL},
};
static PyType_Spec query_spec = {"erless.dlrm._kernels.DiskQuery", sizeof(DiskQuery), 0,
                                 Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                                 query_slots};

/* ---- checksums ---- */

PyDoc_STRVAR(checksums_doc,
             "block_checksums(data, out): crc32c of each block of data, the last perhaps short");
static PyObject *block_checksums(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    static const buffer_t wanted[] = {{"data", 1, 0, 0}, {"out", 4, 1, 0}};
    Py_buffer views[2];
    Py_ssize_t sizes[2];
    (void)module;
    if (!take_all(args, count, 2, views, sizes, wanted)) return NULL;
    const int fits = expect("out", sizes[1], (sizes[0] + DISK_BLOCK - 1) / DISK_BLOCK);
    if (fits) {
        const uint8_t *data = views[0].buf;
        uint32_t *out = views[1].buf;
        Py_BEGIN_ALLOW_THREADS
        for (Py_ssize_t block = 0; block < sizes[1]; block++) {
            const Py_ssize_t at = block * DISK_BLOCK, left = sizes[0] - at;
            out[block] = crc32c(data + at, (size_t)(left < DISK_BLOCK ? left : DISK_BLOCK));
        }
        Py_END_ALLOW_THREADS
    }
    release_all(views, 2);
    if (!fits) return NULL;
    Py_RETURN_NONE;
}

PyMethodDef disk_functions[] = {
    {"block_checksums", (PyCFunction)(void (*)(void))block_checksums, METH_FASTCALL, checksums_doc},
    {NULL, NULL, 0, NULL},
};

int add_disk_pooler(PyObject *module) {
    changes_type = (PyTypeObject *)PyType_FromSpec(&changes_spec);
    if (changes_type == NULL ||
        PyModule_AddObjectRef(module, "DiskChanges", (PyObject *)changes_type))
        return 0;
    query_type = (PyTypeObject *)PyType_FromSpec(&query_spec);
    if (query_type == NULL || PyModule_AddObjectRef(module, "DiskQuery", (PyObject *)query_type))
        return 0;
    PyObject *type = PyType_FromSpec(&pooler_spec);
    const int added = type && PyModule_AddObjectRef(module, "DiskPooler", type) == 0;
    Py_XDECREF(type);
    return added;
}
