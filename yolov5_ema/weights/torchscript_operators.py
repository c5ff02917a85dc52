"""The operators that the code of an exported detector, segmenter or classifier may use.

All of them compute tensors from tensors and numbers, or describe a tensor. None of them opens a file, uses the
network, starts a process or thread, prints, or reads memory that a tensor does not own. Exported models need none of
the other four thousand operators of torch.
"""

from __future__ import annotations

from yolov5_ema.weights.names import words

_ARITHMETIC = words(
    "abs abs_ add add_ addcdiv addcmul addmm addmm_ baddbmm bmm ceil ceil_ clamp clamp_ clamp_max "
    "clamp_max_ clamp_min clamp_min_ clip clip_ cos cosh cross cumprod cumsum div div_ divide dot "
    "einsum erf exp exp_ expm1 floor floor_ floor_divide floordiv fmod frac log log10 log1p log2 log_ "
    "logaddexp lerp lerp_ linear matmul maximum minimum mm mul mul_ multiply mv neg neg_ negative pow "
    "pow_ reciprocal reciprocal_ relu relu_ remainder round round_ rsqrt rsqrt_ rsub sign sin sinh sqrt "
    "sqrt_ square sub sub_ subtract tan tanh tanh_ true_divide truediv trunc trunc_ outer atan atan2 "
    "asin acos logsumexp bilinear hypot"
)
_COMPARING = words(
    "all any bitwise_and bitwise_not bitwise_or bitwise_xor eq equal ge greater greater_equal gt "
    "isclose isfinite isinf isnan le less less_equal logical_and logical_not logical_or logical_xor lt "
    "masked_fill masked_fill_ ne nan_to_num not_equal where __and__ __or__ __not__ __is__ __isnot__ "
    "__contains__ __xor__ __range_length __derive_index"
)
_REDUCING = words(
    "amax amin aminmax argmax argmin argsort count_nonzero kthvalue max mean median min norm prod sort "
    "std std_mean sum topk unique_consecutive var var_mean nonzero frobenius_norm linalg_norm "
    "linalg_vector_norm"
)
_SHAPING = words(
    "adjoint alias broadcast_tensors broadcast_to cat channel_shuffle chunk clone column_stack concat "
    "concatenate constant_pad_nd contiguous detach diag diagonal dim diff expand expand_as flatten flip "
    "fold gather hstack im2col col2im index index_add index_copy index_fill index_put index_put_ "
    "index_select masked_scatter masked_select meshgrid movedim narrow ndimension new_empty new_full "
    "new_ones new_zeros numel numpy_T pad permute pixel_shuffle pixel_unshuffle ravel reflection_pad1d "
    "reflection_pad2d repeat repeat_interleave replication_pad1d replication_pad2d reshape reshape_as "
    "roll rot90 scatter scatter_ scatter_add scatter_add_ select select_scatter slice slice_scatter "
    "split split_with_sizes squeeze squeeze_ stack swapaxes swapdims t take_along_dim tensor_split tile "
    "transpose transpose_ tril triu unbind unflatten unfold unsafe_chunk unsafe_split unsqueeze "
    "unsqueeze_ view view_as vstack type_as size stride len to bool float double half int long item "
    "is_floating_point copy_ fill_ zero_ cpu cuda"
)
_MAKING = words(
    "arange empty empty_like eye full full_like linspace ones ones_like scalar_tensor tensor zeros zeros_like one_hot"
)
_LAYERS = words(
    "_convolution _convolution_mode adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool1d "
    "adaptive_max_pool2d alpha_dropout avg_pool1d avg_pool2d batch_norm celu conv1d conv2d conv3d "
    "conv_transpose1d conv_transpose2d convolution dropout dropout_ elu elu_ embedding feature_dropout "
    "gelu gelu_ glu grid_sampler grid_sampler_2d group_norm hardsigmoid hardsigmoid_ hardswish "
    "hardswish_ hardtanh hardtanh_ instance_norm layer_norm leaky_relu leaky_relu_ log_sigmoid "
    "log_softmax max_pool1d max_pool2d max_pool2d_with_indices mish mish_ "
    "native_group_norm native_layer_norm normalize pairwise_distance cosine_similarity prelu relu6 "
    "relu6_ rms_norm scaled_dot_product_attention selu selu_ sigmoid sigmoid_ silu silu_ softmax "
    "softmin softplus softshrink softsign tanhshrink threshold upsample_bicubic2d upsample_bilinear2d "
    "upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest_exact2d "
    "affine_grid_generator"
)
# properties of tensors, and names that modules give their own attributes; as operators these are harmless
_ASKING = words(
    "device dtype layout shape data name type requires_grad is_cuda is_mps is_cpu is_quantized "
    "is_sparse names id gamma polar alpha_dropout"
)
# parts of the language rather than operators
_LANGUAGE = words(
    "annotate unchecked_cast unchecked_unwrap_optional NumToTensor ImplicitTensorToNum "
    "ScalarImplicit IntImplicit FloatImplicit rangelist list append values keys items get format"
)

ALLOWED = frozenset().union(*(_ARITHMETIC, _COMPARING, _REDUCING, _SHAPING, _MAKING, _LAYERS, _ASKING, _LANGUAGE))
"""Names of torch's operators, without the namespaces ``aten`` and ``prim``."""

OF_LIBRARIES = words(
    "torchvision.nms torchvision.roi_align torchvision.deform_conv2d prepacked.conv2d_clamp_run "
    "prepacked.conv2d_transpose_clamp_run prepacked.linear_clamp_run"
)
"""Operators that may follow ``ops.`` besides torch's own. Others come from libraries that a plug-in loads."""

OF_MOBILE = r"__torch__\.torch\.classes\.xnnpack\.(Conv2d|TransposeConv2d|Linear)OpContext"
"""Weights as packed by ``export --optimize``: the only C++ classes that a file may have."""

FORBIDDEN_WORDS = words("while for with import lambda fork awaitable wait print classes uninitialized __setstate__")
"""Words of the language that no traced model needs: loops, parallel tasks, output, C++ classes, and ``__setstate__``,
which torch calls with data from the file while it builds an object."""
