/* Combine, for Python. */
#include "python/binding.h"

int64_t places_width(const place_t *places, Py_ssize_t count, int64_t stride) {
    int64_t width = 0;
    for (Py_ssize_t s = 0; s < count; s++) {
        const place_t *place = &places[s];
        if (place->column < 0 || place->dim < 1 || place->dim > stride ||
            place->column > stride - place->dim) {
            PyErr_SetString(PyExc_ValueError, "places: beyond the row of `out`");
            return -1;
        }
        width += place->dim;
    }
    return width;
}

enum { BEGIN, ADD_PARTIAL, END };

/* out (samples, stride), places (count, 3), lengths (count, samples), partial, packed */
static PyObject *combine_step(int step, PyObject *const *args, Py_ssize_t count, Py_ssize_t wanted) {
    Py_buffer out = {0}, places = {0}, lengths = {0}, partial = {0};
    PyObject *result = NULL;
    if (!expect("arguments", count, wanted)) return NULL;
    const Py_ssize_t samples = PyLong_AsSsize_t(args[0]);
    if (samples == -1 && PyErr_Occurred()) return NULL;
    const Py_ssize_t floats = take(args[1], &out, 4, 1, "out");
    if (floats < 0) goto done;
    const Py_ssize_t cells = take(args[2], &places, 8, 0, "places");
    if (cells < 0) goto done;
    const int64_t stride = samples > 0 ? floats / samples : 0;
    if (!expect("out", floats, (Py_ssize_t)(stride * samples))) goto done;
    if (!expect("places", cells, cells / 3 * 3)) goto done;
    const int64_t width = samples > 0 ? places_width(places.buf, cells / 3, stride) : 0;
    if (width < 0) goto done;
    if (step != BEGIN) {
        const Py_ssize_t bags = take(args[3], &lengths, 4, 0, "lengths");
        if (bags < 0) goto done;
        if (!expect("lengths", bags, cells / 3 * samples)) goto done;
    }
    if (step == BEGIN) combine_begin(out.buf, stride, samples, places.buf, cells / 3);
    if (step == END) combine_end(out.buf, stride, lengths.buf, samples, places.buf, cells / 3);
    if (step == ADD_PARTIAL) {
        const int packed = PyObject_IsTrue(args[5]);
        if (packed < 0) goto done;
        if (PyObject_GetBuffer(args[4], &partial, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) < 0) {
            partial.obj = NULL;
            goto done;
        }
        const int half = partial.itemsize == 2;
        int64_t needed = width * samples;
        if (packed) {
            const place_t *place = places.buf;
            const int32_t *length = lengths.buf;
            needed = 0;
            for (Py_ssize_t s = 0; s < cells / 3; s++)
                for (Py_ssize_t b = 0; b < samples; b++)
                    if (length[s * samples + b]) needed += place[s].dim;
        }
        if (!half && partial.itemsize != 4) {
            PyErr_SetString(PyExc_TypeError, "partial: neither float32 nor float16");
            goto done;
        }
        if (!expect("partial", partial.len / partial.itemsize, (Py_ssize_t)needed)) goto done;
        combine(out.buf, stride, partial.buf, half, packed, lengths.buf, samples, places.buf,
                cells / 3);
    }
    result = Py_NewRef(Py_None);
done:
    if (out.obj) PyBuffer_Release(&out);
    if (places.obj) PyBuffer_Release(&places);
    if (lengths.obj) PyBuffer_Release(&lengths);
    if (partial.obj) PyBuffer_Release(&partial);
    return result;
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

PyDoc_STRVAR(to_float16_doc, "to_float16(floats, float16_partial): float32 to float16, nearest even");
static PyObject *py_to_float16(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    Py_buffer from, to;
    PyObject *result = NULL;
    (void)module;
    if (!expect("arguments", count, 2)) return NULL;
    const Py_ssize_t size = take(args[0], &from, 4, 0, "floats");
    if (size < 0) return NULL;
    const Py_ssize_t room = take(args[1], &to, 2, 1, "float16_partial");
    if (room >= 0) {
        if (expect("float16_partial", room, size)) {
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
