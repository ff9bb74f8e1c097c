/* Build and search the row index, and pack rows, for Python. */
#include "python/index.h"

#include "arithmetic/index.h"

/* Take the index of a table of `rows` rows. Returns 0 with an error set and nothing taken. */
static int take_blocks(PyObject *from, Py_buffer *view, int64_t rows, int writable) {
    if (rows < 0 || rows > MAX_ROWS) {
        PyErr_Format(PyExc_ValueError, "rows: %lld is out of range", (long long)rows);
        return 0;
    }
    const Py_ssize_t words = take(from, view, 8, writable, "blocks");
    if (words < 0) return 0;
    if (expect_product("blocks", words, INDEX_WORDS, blocks_for(rows))) return 1;
    PyBuffer_Release(view);
    view->obj = NULL;
    return 0;
}

PyDoc_STRVAR(mark_doc, "index_mark(blocks, rows, ids) -> position of the first bad id, or -1");
static PyObject *py_index_mark(PyObject *module, PyObject *args) {
    PyObject *blocks, *ids, *result = NULL;
    Py_buffer b, i;
    long long rows;
    (void)module;
    if (!PyArg_ParseTuple(args, "OLO", &blocks, &rows, &ids)) return NULL;
    if (!take_blocks(blocks, &b, rows, 1)) return NULL;
    if (take(ids, &i, 0, 0, "ids") >= 0) {
        const ids_t view = ids_of(&i);
        int64_t bad;
        Py_BEGIN_ALLOW_THREADS
        bad = index_mark(b.buf, rows, &view);
        Py_END_ALLOW_THREADS
        PyBuffer_Release(&i);
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
    Py_BEGIN_ALLOW_THREADS
    stored = index_rank(b.buf, words / INDEX_WORDS);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&b);
    return PyLong_FromLongLong(stored);
}

PyDoc_STRVAR(find_doc,
             "index_find(blocks, rows, ids, locals) -> (first bad position or -1, absent)");
static PyObject *py_index_find(PyObject *module, PyObject *args) {
    static const buffer_t wanted[] = {{"ids", 0, 0, 0}, {"locals", 8, 1, 0}};
    PyObject *blocks, *arrays[2], *result = NULL;
    Py_buffer b = {0}, views[2];
    Py_ssize_t sizes[2];
    long long rows;
    (void)module;
    if (!PyArg_ParseTuple(args, "OLOO", &blocks, &rows, &arrays[0], &arrays[1])) return NULL;
    if (blocks != Py_None && !take_blocks(blocks, &b, rows, 0)) return NULL;
    if (take_all(arrays, 2, 2, views, sizes, wanted)) {
        if (expect("locals", sizes[1], sizes[0])) {
            const ids_t view = ids_of(&views[0]);
            int64_t absent = 0, bad;
            Py_BEGIN_ALLOW_THREADS
            bad = index_find(b.buf, rows, &view, views[1].buf, &absent);
            Py_END_ALLOW_THREADS
            result = Py_BuildValue("LL", (long long)bad, (long long)absent);
        }
        release_all(views, 2);
    }
    release_all(&b, 1);
    return result;
}

PyDoc_STRVAR(pick_doc,
             "pick_rows(rows, routes, counts, out or None, sums, shard) -> (rows picked, weight); "
             "float32 (n, dim), uint8 (n), float32 (n), float32 (picked, dim), float64 (dim), int");
static PyObject *py_pick_rows(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    static const buffer_t wanted[] = {{"rows", 4, 0, 0},
                                      {"routes", 1, 0, 0},
                                      {"counts", 4, 0, 0},
                                      {"out", 4, 1, 1},
                                      {"sums", 8, 1, 0}};
    Py_buffer views[5];
    Py_ssize_t sizes[5];
    PyObject *result = NULL;
    (void)module;
    if (!expect("arguments", count, 6)) return NULL;
    const long shard = PyLong_AsLong(args[5]);
    if (shard == -1 && PyErr_Occurred()) return NULL;
    if (shard < 0 || shard > UINT8_MAX) {
        PyErr_SetString(PyExc_ValueError, "shard: a route has one byte");
        return NULL;
    }
    if (!take_all(args, 5, 5, views, sizes, wanted)) return NULL;
    const Py_ssize_t dim = sizes[4];
    const uint8_t *routes = views[1].buf;
    if (!expect_product("rows", sizes[0], sizes[1], dim) || !expect("counts", sizes[2], sizes[1]))
        goto done;
    if (views[3].obj) {
        int64_t wanted_rows = 0;
        for (Py_ssize_t i = 0; i < sizes[1]; i++) wanted_rows += routes[i] == shard;
        if (!expect_product("out", sizes[3], wanted_rows, dim)) goto done;
    }
    double weight = 0;
    int64_t picked;
    Py_BEGIN_ALLOW_THREADS
    picked = pick_rows(views[0].buf, sizes[1], dim, routes, (int)shard, views[2].buf, views[3].buf,
                       views[4].buf, &weight);
    Py_END_ALLOW_THREADS
    result = Py_BuildValue("Ld", (long long)picked, weight);
done:
    release_all(views, 5);
    return result;
}

PyMethodDef index_functions[] = {
    {"index_mark", py_index_mark, METH_VARARGS, mark_doc},
    {"index_rank", py_index_rank, METH_O, rank_doc},
    {"index_find", py_index_find, METH_VARARGS, find_doc},
    {"pick_rows", (PyCFunction)(void (*)(void))py_pick_rows, METH_FASTCALL, pick_doc},
    {NULL, NULL, 0, NULL},
};
