/* A sparse function's end of the fast lane, for Python. */
#include "python/fast_path.h"

#include <stdlib.h>

#include "fast_lane/fast_path.h"
#include "fast_lane/form.h"
#include "python/pooler.h"

typedef struct {
    PyObject_HEAD
    fast_path_t path;
    PyObject *pooler, *forms[3]; /* keep rows and texts alive */
} FastPath;

static void fast_path_free(PyObject *object) {
    FastPath *self = (FastPath *)object;
    PyTypeObject *type = Py_TYPE(object);
    Py_XDECREF(self->pooler);
    for (int k = 0; k < 3; k++) Py_XDECREF(self->forms[k]);
    type->tp_free(object);
    Py_DECREF(type);
}

PyDoc_STRVAR(
    fast_path_doc,
    "FastPath(pooler, heads, requests, answers, max_batch, max_body, longest_ms): forms as "
    "in fast_lane/fast_path.h");
static PyObject *fast_path_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    PyObject *pooler, *heads, *requests, *answers;
    static const form_limit_t head_limits[] = {{3, 1}, {3, 2}};
    static const form_limit_t request_limits[] = {{5, 0}, {5, 0}, {5, 0}, {5, 0}};
    static const form_limit_t answer_limits[] = {{2, 1}, {3, 1}, {2, 0}, {2, 0}};
    long long max_batch, max_body, longest_ms;
    (void)kwargs;
    if (!PyArg_ParseTuple(args, "O!O!O!O!LLL", pooler_type, &pooler, &PyTuple_Type, &heads,
                          &PyTuple_Type, &requests, &PyTuple_Type, &answers, &max_batch, &max_body,
                          &longest_ms))
        return NULL;
    FastPath *self = (FastPath *)type->tp_alloc(type, 0);
    if (self == NULL) return NULL;
    self->pooler = Py_NewRef(pooler);
    self->forms[0] = Py_NewRef(heads);
    self->forms[1] = Py_NewRef(requests);
    self->forms[2] = Py_NewRef(answers);
    fast_path_t *path = &self->path;
    path->slices = ((Pooler *)pooler)->slices;
    path->count = ((Pooler *)pooler)->count;
    path->max_batch = max_batch;
    path->max_body = max_body;
    path->longest_ms = longest_ms;
    if (take_forms(heads, 2, head_limits, path->heads) &&
        take_forms(requests, 4, request_limits, path->requests) &&
        take_forms(answers, 4, answer_limits, path->answers))
        return (PyObject *)self;
    Py_DECREF(self);
    return NULL;
}

/* Write head (where a date is given), JSON and partial of the answer in one piece. Returns None
 * where they do not fit, or NULL with an error set. */
static PyObject *write_answer(const fast_path_t *path, const fast_request_t *request, int64_t size,
                              const char *date, int64_t up_ms, int64_t *json_bytes) {
    char text[MOST_HEAD], head[MOST_HEAD];
    const int64_t numbers[2] = {size / (request->float16 ? 2 : 4), size};
    const char *end =
        form_fill(path->answers[2 + request->float16], text, text + MOST_HEAD, numbers, "");
    if (end == NULL) return Py_NewRef(Py_None);
    const int64_t json = *json_bytes = end - text, sizes[3] = {json + size, json, up_ms};
    const char *stop = head;
    if (date) stop = form_fill(path->answers[up_ms >= 0], head, head + MOST_HEAD, sizes, date);
    if (stop == NULL) return Py_NewRef(Py_None);
    PyObject *answer = PyBytes_FromStringAndSize(NULL, (stop - head) + json + size);
    if (answer == NULL) return NULL;
    char *at = PyBytes_AS_STRING(answer);
    memcpy(at, head, (size_t)(stop - head));
    memcpy(at + (stop - head), text, (size_t)json);
    memcpy(at + (stop - head) + json,
           request->float16 ? (void *)request->float16_partial : (void *)request->partial,
           (size_t)size);
    return answer;
}

PyDoc_STRVAR(
    answer_doc,
    "answer(buffer, begin, end, announced, date, up_ms) -> None, or (answer, where the "
    "request ended, its ids, bytes of its body, of JSON, of the partial); announced: 0, or "
    "the bytes of JSON of a request without its head, whose answer then has none either; "
    "up_ms below 0 is left out");
static PyObject *fast_path_answer(PyObject *object, PyObject *const *args, Py_ssize_t count) {
    const fast_path_t *path = &((FastPath *)object)->path;
    Py_buffer buffer;
    fast_request_t request = {0};
    fault_t fault = {0};
    PyObject *result = NULL;
    if (!expect("arguments", count, 6)) return NULL;
    const Py_ssize_t begin = PyLong_AsSsize_t(args[1]), end = PyLong_AsSsize_t(args[2]);
    const Py_ssize_t announced = PyLong_AsSsize_t(args[3]);
    const char *date = PyBytes_AsString(args[4]);
    const long long up_ms = PyLong_AsLongLong(args[5]);
    if (PyErr_Occurred() || date == NULL || take(args[0], &buffer, 1, 0, "buffer") < 0) return NULL;
    if (begin < 0 || end < begin || end > buffer.len) {
        PyErr_SetString(PyExc_ValueError, "buffer: begin and end are beyond it");
        goto done;
    }
    const char *text = buffer.buf;
    result = Py_NewRef(Py_None);
    if (!fast_path_read(path, text + begin, text + end, announced, &request)) goto done;
    const int64_t floats = fast_path_pool(path, &request, &fault);
    if (floats < 0 || fault.kind) goto done; /* the general way says what is wrong */
    const int64_t size = floats * (request.float16 ? 2 : 4);
    int64_t json = 0;
    PyObject *answer = write_answer(path, &request, size, announced ? NULL : date, up_ms, &json);
    Py_SETREF(result, answer);
    if (answer != NULL && answer != Py_None)
        result = Py_BuildValue(
            "NnLLLL", answer, (Py_ssize_t)(request.end - text), (long long)request.values.size,
            (long long)(request.end - request.body), (long long)json, (long long)size);
done:
    free(request.partial);
    PyBuffer_Release(&buffer);
    return result;
}

static PyMethodDef fast_path_methods[] = {
    {"answer", (PyCFunction)(void (*)(void))fast_path_answer, METH_FASTCALL, answer_doc},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot fast_path_slots[] = {
    {Py_tp_new, fast_path_new},
    {Py_tp_dealloc, fast_path_free},
    {Py_tp_methods, fast_path_methods},
    {Py_tp_doc, (void *)fast_path_doc},
    {0, NULL},
};
static PyType_Spec fast_path_spec = {"erless.dlrm._kernels.FastPath", sizeof(FastPath), 0,
                                     Py_TPFLAGS_DEFAULT, fast_path_slots};

int add_fast_path(PyObject *module) {
    PyObject *type = PyType_FromSpec(&fast_path_spec);
    const int added = type && PyModule_AddObjectRef(module, "FastPath", type) == 0;
    Py_XDECREF(type);
    return added;
}
