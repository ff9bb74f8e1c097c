/* How the gateway talks to one shard, for Python. */
#include "python/shard_channel.h"

static void channel_free(PyObject *object) {
    ShardChannel *self = (ShardChannel *)object;
    PyTypeObject *type = Py_TYPE(object);
    for (int k = 0; k < 3; k++) Py_XDECREF(self->forms[k]);
    release_all(&self->places, 1);
    type->tp_free(object);
    Py_DECREF(type);
}

PyDoc_STRVAR(
    channel_doc,
    "ShardChannel(heads, requests, answers, places): forms as in fast_lane/shard_channel.h; "
    "int64 (tables, 4)");
static PyObject *channel_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static const form_limit_t head_limits[] = {{3, 0}, {3, 1}};
    static const form_limit_t request_limits[] = {{5, 0}, {5, 0}};
    static const form_limit_t answer_limits[] = {{2, 1}, {3, 1}, {2, 0}, {2, 0}};
    PyObject *heads, *requests, *answers, *places;
    (void)kwargs;
    if (!PyArg_ParseTuple(args, "O!O!O!O", &PyTuple_Type, &heads, &PyTuple_Type, &requests,
                          &PyTuple_Type, &answers, &places))
        return NULL;
    ShardChannel *self = (ShardChannel *)type->tp_alloc(type, 0);
    if (self == NULL) return NULL;
    self->forms[0] = Py_NewRef(heads);
    self->forms[1] = Py_NewRef(requests);
    self->forms[2] = Py_NewRef(answers);
    const Py_ssize_t cells = take(places, &self->places, 8, 0, "places");
    self->channel.places = self->places.buf;
    self->channel.tables = cells / 4;
    if (cells >= 0 && expect("places", cells, cells / 4 * 4) &&
        take_forms(heads, 2, head_limits, self->channel.heads) &&
        take_forms(requests, 2, request_limits, self->channel.requests) &&
        take_forms(answers, 4, answer_limits, self->channel.answers))
        return (PyObject *)self;
    Py_DECREF(self);
    return NULL;
}

static PyType_Slot channel_slots[] = {
    {Py_tp_new, channel_new},
    {Py_tp_dealloc, channel_free},
    {Py_tp_doc, (void *)channel_doc},
    {0, NULL},
};
static PyType_Spec channel_spec = {"erless.dlrm._kernels.ShardChannel", sizeof(ShardChannel), 0,
                                   Py_TPFLAGS_DEFAULT, channel_slots};

PyTypeObject *shard_channel_type;

int add_shard_channel(PyObject *module) {
    PyObject *type = PyType_FromSpec(&channel_spec);
    if (type == NULL) return 0;
    shard_channel_type = (PyTypeObject *)type;
    return PyModule_AddObjectRef(module, "ShardChannel", type) == 0;
}
