"""The operators that an archive may use: a closed list, and what a few of them are run as.

An operator is here because it only computes: its result depends on its arguments alone, it writes
to none of them, and it reads no memory beyond them. Each name is an overload of ATen as
torch.export writes it, before (`layer_norm`) or after (`native_layer_norm`) decompositions.
Not here: in-place operators (those on a value of their own are run as their pure form, see
`pure_form`), `out=` variants, random numbers, uninitialised memory (`empty`), views by raw strides
(`as_strided`), files (`from_file`), values read back into Python (`item`), other namespaces.
"""

from __future__ import annotations

__all__ = [
    "CREATES",
    "LOOKUPS",
    "MAY_SHARE_MEMORY",
    "OPERATORS",
    "RANDOM",
    "SIZE_QUERIES",
    "pure_form",
]

_ELEMENTWISE = """
abs acos acosh asin asinh atan atanh ceil cos cosh erf erfc exp exp2 expm1 floor frac isfinite
isinf isnan log log10 log1p log2 logical_not neg positive reciprocal relu relu6 round rsqrt selu
sigmoid sign signbit silu sin sinh sqrt square tan tanh trunc gelu elu celu leaky_relu hardtanh
hardswish hardsigmoid log_sigmoid mish softplus hardshrink softshrink threshold prelu
_prelu_kernel glu nan_to_num special_expit special_erf special_log1p special_xlogy sinc logit
bitwise_not bitwise_and.Tensor bitwise_and.Scalar bitwise_or.Tensor bitwise_or.Scalar
bitwise_xor.Tensor bitwise_xor.Scalar bitwise_left_shift.Tensor_Scalar
bitwise_right_shift.Tensor_Scalar __and__.Tensor __and__.Scalar __or__.Tensor __or__.Scalar
__xor__.Tensor __xor__.Scalar logical_and logical_or logical_xor
add.Tensor add.Scalar sub.Tensor sub.Scalar rsub.Tensor rsub.Scalar mul.Tensor mul.Scalar
multiply.Tensor subtract.Tensor div.Tensor div.Scalar div.Tensor_mode div.Scalar_mode divide.Tensor
true_divide.Tensor true_divide.Scalar floor_divide floor_divide.Scalar remainder.Tensor
remainder.Scalar fmod.Tensor fmod.Scalar pow.Tensor_Tensor pow.Tensor_Scalar pow.Scalar
float_power.Tensor_Scalar atan2 hypot xlogy.Tensor maximum minimum fmax fmin max.other min.other
lerp.Scalar lerp.Tensor addcmul addcdiv clamp clamp.Tensor clamp_min clamp_min.Tensor clamp_max
clamp_max.Tensor clip clip.Tensor copysign.Tensor heaviside
eq.Tensor eq.Scalar ne.Tensor ne.Scalar lt.Tensor lt.Scalar le.Tensor le.Scalar gt.Tensor gt.Scalar
ge.Tensor ge.Scalar isclose where.self where.ScalarOther where.ScalarSelf where.Scalar
masked_fill.Scalar masked_fill.Tensor fill.Scalar fill.Tensor
"""

_REDUCTIONS = """
sum sum.dim_IntList mean mean.dim prod prod.dim_int amax amin aminmax max max.dim min min.dim argmax
argmin all all.dim all.dims any any.dim any.dims std std.dim std.correction var var.dim
var.correction var_mean.correction std_mean.correction norm.Scalar norm.ScalarOpt_dim
linalg_vector_norm logsumexp count_nonzero count_nonzero.dim_IntList nansum cumsum cumprod
logcumsumexp cummax cummin median median.dim softmax.int log_softmax.int _softmax _log_softmax
special_softmax special_log_softmax cosine_similarity pairwise_distance bucketize.Tensor
"""

_PRODUCTS = """
linear matmul mm bmm mv dot vdot addmm addmv addbmm baddbmm einsum tensordot outer inner bilinear
_trilinear cdist linalg_matmul
"""

_SHAPES = """
view reshape _unsafe_view view_as reshape_as expand expand_as permute transpose.int t mT numpy_T
movedim.int movedim.intlist swapaxes flatten.using_ints unflatten.int squeeze squeeze.dim
squeeze.dims unsqueeze select.int slice.Tensor narrow split.Tensor split.sizes split_with_sizes
chunk unsafe_split.Tensor unsafe_split_with_sizes tensor_split.sections unbind.int diagonal
cat concat stack hstack vstack repeat tile
repeat_interleave.self_int repeat_interleave.self_Tensor flip fliplr roll tril triu diag diag_embed
pad constant_pad_nd pixel_shuffle unfold atleast_1d atleast_2d broadcast_to ravel
alias detach lift_fresh lift_fresh_copy clone contiguous
_to_copy to.dtype to.dtype_layout to.device to.other type_as
"""

_PICKING = """
index.Tensor index_select gather take_along_dim masked_select sort sort.stable topk argsort
embedding select_scatter slice_scatter scatter.src scatter.value scatter_add scatter_reduce.two
index_add index_put
index_fill.int_Scalar masked_scatter searchsorted.Tensor one_hot isin.Tensor_Tensor
nonzero nonzero_numpy
"""

_LAYERS = """
batch_norm _native_batch_norm_legit_no_training layer_norm native_layer_norm rms_norm group_norm
native_group_norm dropout scaled_dot_product_attention conv1d conv1d.padding conv2d
conv2d.padding conv3d convolution conv_transpose1d max_pool1d max_pool2d max_pool2d_with_indices
avg_pool1d avg_pool2d adaptive_avg_pool1d adaptive_avg_pool2d _adaptive_avg_pool2d
adaptive_max_pool1d
"""

_CREATION = """
arange arange.start arange.start_step zeros ones full eye eye.m linspace scalar_tensor zeros_like
ones_like full_like new_zeros new_ones new_full triu_indices tril_indices
"""

_CHECKS = "_assert_tensor_metadata _assert_async.msg _assert_scalar sym_constrain_range_for_size"

_SIZES = "sym_size.int sym_numel sym_stride.int sym_storage_offset"


def _overloads(*groups: str) -> frozenset[str]:
    words = (word for group in groups for word in group.split())
    return frozenset(word if "." in word else f"{word}.default" for word in words)


SIZE_QUERIES = _overloads(_SIZES)
CREATES = _overloads(_CREATION)
OPERATORS = (
    _overloads(_ELEMENTWISE, _REDUCTIONS, _PRODUCTS, _SHAPES, _PICKING, _LAYERS, _CREATION, _CHECKS)
    | SIZE_QUERIES
)

# Embedding lookups of a whole model, which is cut before it runs; a tower has none of them.
LOOKUPS = _overloads(
    "embedding_bag embedding_bag.padding_idx _embedding_bag _embedding_bag_forward_only"
)

# Results that may be the memory of an argument: an in-place operator on one changes the other.
MAY_SHARE_MEMORY = _overloads(_SHAPES, "dropout nan_to_num positive") - _overloads(
    "cat concat stack hstack vstack repeat tile repeat_interleave.self_int "
    "repeat_interleave.self_Tensor flip fliplr roll tril triu diag_embed constant_pad_nd "
    "lift_fresh_copy clone _to_copy"
)

# What these draw differs from call to call; a module after `.eval()` exports without them.
_DRAWS = """
native_dropout alpha_dropout feature_dropout feature_alpha_dropout rand randn randint rand_like
randn_like randint_like randperm bernoulli normal uniform multinomial rrelu rrelu_with_noise
"""
RANDOM = frozenset(_DRAWS.split())


def pure_form(name: str) -> str | None:
    """The overload that computes what an in-place one writes, or None.

    >>> pure_form("masked_fill_.Scalar")
    'masked_fill.Scalar'
    >>> pure_form("relu.default")
    """
    packet, _, overload = name.partition(".")
    if not packet.endswith("_") or packet.endswith("__"):
        return None
    pure = f"{packet.rstrip('_')}.{overload}"
    return pure if pure in OPERATORS else None
