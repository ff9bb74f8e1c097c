/* How the gateway talks to one shard, for Python. */
#ifndef ERLESS_PYTHON_SHARD_CHANNEL_H
#define ERLESS_PYTHON_SHARD_CHANNEL_H

#include "fast_lane/shard_channel.h"
#include "python/binding.h"

typedef struct {
    PyObject_HEAD
    shard_channel_t channel;
    PyObject *forms[3]; /* keep the texts alive */
    Py_buffer places;
} ShardChannel;

extern PyTypeObject *shard_channel_type;
int add_shard_channel(PyObject *module); /* 0: an error is set */

#endif
