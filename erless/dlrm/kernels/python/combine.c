/* Combine partials, for Python. */
#include "python/combine.h"

enum { BEGIN, ADD_PARTIAL, END };

/* The arguments of a step: out (samples, stride), places (count, 3), lengths (count, samples). */
typedef struct {
    Py_buffer out, places, lengths, partial;
    int64_t samples, stride, count, width;
} step_t;

static void close_step(step_t *step) {
    Py_buffer *const views[] = {&step->out, &step->places, &step->lengths, &step->partial};
    for (int k = 0; k < 4; k++) release_all(views[k], 1);
}

/* Take samples, out, places and, unless the step is BEGIN, lengths. Returns 0 with an error set. */
static int open_step(int kind, PyObject *const *args, step_t *step) {
    step->samples = PyLong_AsLongLong(args[0]);
    if (step->samples == -1 && PyErr_Occurred()) return 0;
    if (step->samples < 0) {
        PyErr_SetString(PyExc_ValueError, "samples: negative");
        return 0;
    }
    const Py_ssize_t floats = take(args[1], &step->out, 4, 1, "out");
    if (floats < 0) return 0;
    const Py_ssize_t cells = take(args[2], &step->places, 8, 0, "places");
    if (cells < 0) return 0;
    step->stride = step->samples ? floats / step->samples : 0;
    step->count = cells / 3;
    if (!expect_product("out", floats, step->stride, step->samples) ||
        !expect_product("places", cells, step->count, 3))
        return 0;
    if (step->samples) step->width = places_width(step->places.buf, step->count, step->stride);
    if (step->width < 0) return 0;
    if (kind == BEGIN) return 1;
    const Py_ssize_t bags = take(args[3], &step->lengths, 4, 0, "lengths");
    return bags >= 0 && expect_product("lengths", bags, step->count, step->samples);
}

/* Add the partial in `argument` to the step's output. Returns 0 with an error set. */
static int add_partial(step_t *step, PyObject *argument, int packed) {
    if (PyObject_GetBuffer(argument, &step->partial, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) < 0) {
        step->partial.obj = NULL;
        return 0;
    }
    const Py_ssize_t bytes = step->partial.itemsize;
    if (bytes != 2 && bytes != 4) {
        PyErr_SetString(PyExc_TypeError, "partial: neither float32 nor float16");
        return 0;
    }
    const int64_t packed_size =
        packed_floats(step->lengths.buf, packed ? step->samples : 0, step->places.buf, step->count);
    if (!expect_product("partial", step->partial.len / bytes, packed ? packed_size : step->width,
                        packed ? 1 : step->samples))
        return 0;
    combine(step->out.buf, step->stride, step->partial.buf, bytes == 2, packed, step->lengths.buf,
            step->samples, step->places.buf, step->count);
    return 1;
}

static PyObject *combine_step(int kind, PyObject *const *args, Py_ssize_t count,
                              Py_ssize_t wanted) {
    step_t step = {0};
    if (!expect("arguments", count, wanted)) return NULL;
    int done = open_step(kind, args, &step);
    if (done && kind == BEGIN)
        combine_begin(step.out.buf, step.stride, step.samples, step.places.buf, step.count);
    if (done && kind == END)
        combine_end(step.out.buf, step.stride, step.lengths.buf, step.samples, step.places.buf,
                    step.count);
    if (done && kind == ADD_PARTIAL) {
        const int packed = PyObject_IsTrue(args[5]);
        done = packed >= 0 && add_partial(&step, args[4], packed);
    }
    close_step(&step);
    return done ? Py_NewRef(Py_None) : NULL;
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

PyDoc_STRVAR(to_float16_doc, "to_float16(floats, out): float32 to float16, nearest even");
static PyObject *py_to_float16(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    Py_buffer from, to;
    PyObject *result = NULL;
    (void)module;
    if (!expect("arguments", count, 2)) return NULL;
    const Py_ssize_t size = take(args[0], &from, 4, 0, "floats");
    if (size < 0) return NULL;
    const Py_ssize_t room = take(args[1], &to, 2, 1, "out");
    if (room >= 0) {
        if (expect("out", room, size)) {
            to_float16(from.buf, to.buf, size);
            result = Py_NewRef(Py_None);
        }
        PyBuffer_Release(&to);
    }
    PyBuffer_Release(&from);
    return result;
}

PyMethodDef combine_functions[] = {
    {"combine_begin", (PyCFunction)(void (*)(void))py_begin, METH_FASTCALL, begin_doc},
    {"combine", (PyCFunction)(void (*)(void))py_combine, METH_FASTCALL, combine_doc},
    {"combine_end", (PyCFunction)(void (*)(void))py_end, METH_FASTCALL, end_doc},
    {"to_float16", (PyCFunction)(void (*)(void))py_to_float16, METH_FASTCALL, to_float16_doc},
    {NULL, NULL, 0, NULL},
};
