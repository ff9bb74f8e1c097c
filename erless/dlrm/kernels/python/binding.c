/* Take arguments, say what is wrong with them. */
#include "python/binding.h"

#include "fast_lane/form.h"

Py_ssize_t take(PyObject *from, Py_buffer *view, Py_ssize_t itemsize, int writable,
                const char *name) {
    const int flags = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0);
    if (PyObject_GetBuffer(from, view, flags) < 0) {
        view->obj = NULL;
        return -1;
    }
    const Py_ssize_t bytes = view->itemsize;
    if (itemsize ? bytes != itemsize : bytes != 4 && bytes != 8) {
        PyErr_Format(PyExc_TypeError, "%s: %zd-byte items do not fit", name, bytes);
        PyBuffer_Release(view);
        return -1;
    }
    return view->len / bytes;
}

int take_all(PyObject *const *args, Py_ssize_t given, int count, Py_buffer *views,
             Py_ssize_t *sizes, const buffer_t *wanted) {
    memset(views, 0, sizeof(*views) * (size_t)count);
    memset(sizes, 0, sizeof(*sizes) * (size_t)count);
    if (!expect("arguments", given, count)) return 0;
    for (int k = 0; k < count; k++) {
        const buffer_t *buffer = &wanted[k];
        if (buffer->optional && args[k] == Py_None) continue;
        sizes[k] = take(args[k], &views[k], buffer->itemsize, buffer->writable, buffer->name);
        if (sizes[k] < 0) {
            release_all(views, count);
            return 0;
        }
    }
    return 1;
}

void release_all(Py_buffer *views, int count) {
    for (int k = 0; k < count; k++)
        if (views[k].obj) PyBuffer_Release(&views[k]);
}

int take_forms(PyObject *tuple, Py_ssize_t count, const form_limit_t *limits, const char **forms) {
    if (!expect("forms", PyTuple_GET_SIZE(tuple), count)) return 0;
    for (Py_ssize_t k = 0; k < count; k++) {
        forms[k] = PyBytes_AsString(PyTuple_GET_ITEM(tuple, k));
        if (forms[k] == NULL) return 0;
        if (!form_check(forms[k], limits[k].numbers, limits[k].words)) {
            PyErr_SetString(PyExc_ValueError, "forms: unknown, or too many numbers or words");
            return 0;
        }
    }
    return 1;
}

int expect(const char *name, Py_ssize_t size, Py_ssize_t wanted) {
    if (size == wanted) return 1;
    PyErr_Format(PyExc_ValueError, "%s: %zd items, expected %zd", name, size, wanted);
    return 0;
}

int expect_product(const char *name, Py_ssize_t size, int64_t a, int64_t b) {
    int64_t product;
    if (!__builtin_mul_overflow(a, b, &product)) return expect(name, size, (Py_ssize_t)product);
    PyErr_Format(PyExc_ValueError, "%s: %lld times %lld items are too many", name, (long long)a,
                 (long long)b);
    return 0;
}

/* Whether `begins` ascend from 0; sets an error where not. */
static int begins_fit(const int64_t *begins, int64_t tables) {
    int fits = begins[0] == 0;
    for (int64_t t = 0; t < tables; t++) fits = fits && begins[t] <= begins[t + 1];
    if (!fits) PyErr_SetString(PyExc_ValueError, "begins: not ascending from 0");
    return fits;
}

int take_bags(PyObject *from, Py_buffer *view, int64_t tables, bags_t *bags) {
    *bags = (bags_t){.tables = tables};
    view->obj = NULL;
    if (PyLong_Check(from)) {
        int64_t total;
        bags->samples = PyLong_AsLongLong(from);
        if (bags->samples == -1 && PyErr_Occurred()) return 0;
        if (bags->samples >= 0 && !__builtin_mul_overflow(bags->samples, tables + 1, &total))
            return 1;
        PyErr_SetString(PyExc_ValueError, "samples: negative, or too many");
        return 0;
    }
    const Py_ssize_t size = take(from, view, 8, 0, "begins");
    if (size < 0) return 0;
    bags->begins = view->buf;
    if (expect("begins", size, (Py_ssize_t)tables + 1) && begins_fit(bags->begins, tables))
        return 1;
    release_all(view, 1);
    view->obj = NULL;
    return 0;
}

int lengths_taken(const Py_buffer *lengths, const Py_buffer *begins, int64_t tables, bags_t *bags) {
    const Py_ssize_t size = lengths->len / (Py_ssize_t)sizeof(int32_t);
    *bags = (bags_t){.lengths = lengths->buf, .tables = tables};
    if (begins->obj == NULL) {
        bags->samples = tables ? size / tables : 0;
        return expect_product("lengths", size, bags->samples, tables);
    }
    bags->begins = begins->buf;
    return expect("begins", begins->len / (Py_ssize_t)sizeof(int64_t), (Py_ssize_t)tables + 1) &&
           begins_fit(bags->begins, tables) &&
           expect("lengths", size, (Py_ssize_t)bags->begins[tables]);
}

int places_fit(const place_t *places, const bags_t *bags, int64_t size) {
    for (int64_t t = 0; t < bags->tables; t++) {
        const place_t *place = &places[t];
        const int64_t count = bags_of(bags, t);
        int64_t last;
        if (count == 0) continue;
        if (place->column < 0 || place->stride < 0 || place->dim < 1 || place->dim > size ||
            place->column > size - place->dim ||
            __builtin_mul_overflow(count - 1, place->stride, &last) ||
            last > size - place->dim - place->column) {
            PyErr_SetString(PyExc_ValueError, "places: beyond `out`");
            return 0;
        }
    }
    return 1;
}

ids_t ids_of(const Py_buffer *view) {
    return (ids_t){view->buf, view->len / view->itemsize, view->itemsize == 8};
}

PyObject *fault_tuple(const fault_t *fault) {
    if (fault->kind == FAULT_MEMORY) return PyErr_NoMemory();
    return Py_BuildValue("iLLLL", fault->kind, (long long)fault->table, (long long)fault->sample,
                         (long long)fault->position, (long long)fault->value);
}
