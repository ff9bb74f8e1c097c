/* Combine partials, for Python. */
#include "python/combine.h"

enum { BEGIN, ADD_PARTIAL, END };

/* The arguments of a step: how many bags each table has, out, places (tables, 4), lengths. */
typedef struct {
    Py_buffer out, places, lengths, partial, begins;
    bags_t bags;
    int64_t floats;
} step_t;

static void close_step(step_t *step) {
    Py_buffer *const views[] = {&step->out, &step->places, &step->lengths, &step->partial,
                                &step->begins};
    for (int k = 0; k < 5; k++) release_all(views[k], 1);
}

/* Take bags, out, places and, unless the step is BEGIN, lengths. Returns 0 with an error set. */
static int open_step(int kind, PyObject *const *args, step_t *step) {
    step->floats = take(args[1], &step->out, 4, 1, "out");
    if (step->floats < 0) return 0;
    const Py_ssize_t cells = take(args[2], &step->places, 8, 0, "places");
    if (cells < 0 || !expect_product("places", cells, cells / 4, 4) ||
        !take_bags(args[0], &step->begins, cells / 4, &step->bags) ||
        !places_fit(step->places.buf, &step->bags, step->floats))
        return 0;
    if (kind == BEGIN) return 1;
    const Py_ssize_t bags = take(args[3], &step->lengths, 4, 0, "lengths");
    step->bags.lengths = step->lengths.buf;
    return bags >= 0 &&
           expect("lengths", bags, (Py_ssize_t)bags_before(&step->bags, step->bags.tables));
}

/* The floats of the step's partial, or -1 with an error set. */
static int64_t partial_size(const step_t *step, int packed) {
    const place_t *places = step->places.buf;
    int64_t width = 0;
    if (packed) return packed_floats(&step->bags, places);
    if (step->bags.begins) {
        PyErr_SetString(PyExc_ValueError, "partial: packed where tables differ in bags");
        return -1;
    }
    for (int64_t t = 0; step->bags.samples && t < step->bags.tables; t++) width += places[t].dim;
    return step->bags.samples * width;
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
    const int64_t size = partial_size(step, packed);
    if (size < 0 || !expect("partial", step->partial.len / bytes, (Py_ssize_t)size)) return 0;
    if (size == 0) return 1;
    combine(step->out.buf, step->partial.buf, bytes == 2, packed, &step->bags, step->places.buf);
    return 1;
}

static PyObject *combine_step(int kind, PyObject *const *args, Py_ssize_t count,
                              Py_ssize_t wanted) {
    step_t step = {0};
    if (!expect("arguments", count, wanted)) return NULL;
    int done = open_step(kind, args, &step);
    if (done && kind == BEGIN)
        combine_begin(step.out.buf, step.floats, &step.bags, step.places.buf);
    if (done && kind == END) combine_end(step.out.buf, &step.bags, step.places.buf);
    if (done && kind == ADD_PARTIAL) {
        const int packed = PyObject_IsTrue(args[5]);
        done = packed >= 0 && add_partial(&step, args[4], packed);
    }
    close_step(&step);
    return done ? Py_NewRef(Py_None) : NULL;
}

PyDoc_STRVAR(begin_doc,
             "combine_begin(bags, out, places): sums at 0, maxima at -inf; bags: samples of "
             "all tables, or int64 (tables + 1) where each table's bags begin");
static PyObject *py_begin(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    return combine_step(BEGIN, args, count, 3);
}

PyDoc_STRVAR(combine_doc, "combine(bags, out, places, lengths, partial, packed)");
static PyObject *py_combine(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    return combine_step(ADD_PARTIAL, args, count, 6);
}

PyDoc_STRVAR(end_doc, "combine_end(bags, out, places, lengths): means divided, no row: 0");
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
