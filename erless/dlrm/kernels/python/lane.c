/* A sparse function's fast lane, for Python. */
#include <stdlib.h>

#include "python/binding.h"

typedef struct {
    PyObject_HEAD
    lane_t lane;
    PyObject *pooler, *forms[3]; /* keep rows and texts alive */
} Lane;

static void lane_free(PyObject *object) {
    Lane *self = (Lane *)object;
    PyTypeObject *type = Py_TYPE(object);
    Py_XDECREF(self->pooler);
    for (int k = 0; k < 3; k++) Py_XDECREF(self->forms[k]);
    type->tp_free(object);
    Py_DECREF(type);
}

PyDoc_STRVAR(lane_doc,
             "Lane(pooler, heads, asks, answers, max_batch, max_body, longest_ms): forms as in "
             "kernels.h, lane_t");
static PyObject *lane_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    PyObject *pooler, *heads, *asks, *answers;
    long long max_batch, max_body, longest_ms;
    (void)kwargs;
    if (!PyArg_ParseTuple(args, "O!O!O!O!LLL", pooler_type, &pooler, &PyTuple_Type, &heads,
                          &PyTuple_Type, &asks, &PyTuple_Type, &answers, &max_batch, &max_body,
                          &longest_ms))
        return NULL;
    Lane *self = (Lane *)type->tp_alloc(type, 0);
    if (self == NULL) return NULL;
    self->pooler = Py_NewRef(pooler);
    self->forms[0] = Py_NewRef(heads);
    self->forms[1] = Py_NewRef(asks);
    self->forms[2] = Py_NewRef(answers);
    lane_t *lane = &self->lane;
    lane->slices = ((Pooler *)pooler)->slices;
    lane->count = ((Pooler *)pooler)->count;
    lane->max_batch = max_batch;
    lane->max_body = max_body;
    lane->longest_ms = longest_ms;
    if (take_forms(heads, 2, 3, lane->heads) && take_forms(asks, 4, 5, lane->asks) &&
        take_forms(answers, 4, 3, lane->answers))
        return (PyObject *)self;
    Py_DECREF(self);
    return NULL;
}

/* Head (where a date is given), JSON and partial of the answer, in one piece. */
static PyObject *written(const lane_t *lane, const ask_t *ask, int64_t size, const char *date,
                         int64_t up_ms, int64_t *json_bytes) {
    char text[MOST_HEAD], head[MOST_HEAD];
    const int64_t numbers[2] = {size / (ask->half ? 2 : 4), size};
    const char *end = form_fill(lane->answers[2 + ask->half], text, text + MOST_HEAD, numbers, "");
    if (end == NULL) return Py_NewRef(Py_None);
    const int64_t json = *json_bytes = end - text, sizes[3] = {json + size, json, up_ms};
    const char *stop = head;
    if (date) stop = form_fill(lane->answers[up_ms >= 0], head, head + MOST_HEAD, sizes, date);
    if (stop == NULL) return Py_NewRef(Py_None);
    PyObject *answer = PyBytes_FromStringAndSize(NULL, (stop - head) + json + size);
    if (answer == NULL) return NULL;
    char *at = PyBytes_AS_STRING(answer);
    memcpy(at, head, (size_t)(stop - head));
    memcpy(at + (stop - head), text, (size_t)json);
    memcpy(at + (stop - head) + json, ask->half ? (void *)ask->halves : (void *)ask->partial,
           (size_t)size);
    return answer;
}

PyDoc_STRVAR(answer_doc,
             "answer(buffer, begin, end, announced, date, up_ms) -> None, or (answer, where the "
             "request ended, its ids, bytes of its body, of JSON, of the partial); announced: 0, or "
             "the bytes of JSON of a request without its head, whose answer then has none either; "
             "up_ms below 0 is not told");
static PyObject *lane_answer(PyObject *object, PyObject *const *args, Py_ssize_t count) {
    const lane_t *lane = &((Lane *)object)->lane;
    Py_buffer buffer;
    ask_t ask = {0};
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
    if (!lane_read(lane, text + begin, text + end, announced, &ask)) goto done;
    const int64_t floats = lane_pool(lane, &ask, &fault);
    if (floats < 0 || fault.kind) goto done; /* the general way says what is wrong */
    const int64_t size = floats * (ask.half ? 2 : 4);
    int64_t json = 0;
    PyObject *answer = written(lane, &ask, size, announced ? NULL : date, up_ms, &json);
    Py_SETREF(result, answer);
    if (answer != NULL && answer != Py_None)
        result = Py_BuildValue("NnLLLL", answer, (Py_ssize_t)(ask.end - text),
                               (long long)ask.values.size, (long long)(ask.end - ask.body),
                               (long long)json, (long long)size);
done:
    free(ask.partial);
    PyBuffer_Release(&buffer);
    return result;
}

static PyMethodDef lane_methods[] = {
    {"answer", (PyCFunction)(void (*)(void))lane_answer, METH_FASTCALL, answer_doc},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot lane_slots[] = {
    {Py_tp_new, lane_new},         {Py_tp_dealloc, lane_free},
    {Py_tp_methods, lane_methods}, {Py_tp_doc, (void *)lane_doc},
    {0, NULL},
};
static PyType_Spec lane_spec = {"erless.dlrm._kernels.Lane", sizeof(Lane), 0, Py_TPFLAGS_DEFAULT,
                                lane_slots};

int add_lane(PyObject *module) {
    PyObject *type = PyType_FromSpec(&lane_spec);
    const int added = type && PyModule_AddObjectRef(module, "Lane", type) == 0;
    Py_XDECREF(type);
    return added;
}
