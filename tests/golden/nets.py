"""The two networks of the golden files, in plain jax.lax, from weights in torch layout.

They share nothing with ard_jax.models, so that a golden test of losses, attacks or methods does not
depend on our networks.
"""

import jax
import jax.numpy as jnp
from jax import lax

_DIMS = ("NHWC", "HWIO", "NHWC")


def conv(x, weight, stride, bias=None):
    """3x3 or 4x4 convolution with one pixel of padding on each side; weight [out,in,kh,kw]."""
    kernel = jnp.transpose(weight, (2, 3, 1, 0))
    out = lax.conv_general_dilated(
        x, kernel, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=_DIMS
    )
    return out if bias is None else out + bias


def small_variables(weights):
    """Torch-named SmallNet weights -> {"params", "batch_stats"}, same names, same layouts."""
    weights = {k: jnp.asarray(v) for k, v in weights.items()}
    stats = {k: v for k, v in weights.items() if ".running_" in k}
    return {"params": {k: v for k, v in weights.items() if k not in stats}, "batch_stats": stats}


def small_apply(variables, images, train):
    """SmallNet(a, b): (logits [B,10], running statistics), batch norm as in torch.

    conv3x3(3->a) BN ReLU conv3x3(a->b, stride 2) BN ReLU, global mean, linear. In train mode the
    batch's biased variance normalises and its unbiased variance enters the running statistics.
    """
    p, stats = variables["params"], dict(variables["batch_stats"])

    def norm(x, name):
        mean, var = stats[f"{name}.running_mean"], stats[f"{name}.running_var"]
        if train:
            batch_mean, batch_var = jnp.mean(x, (0, 1, 2)), jnp.var(x, (0, 1, 2))
            n = x.size // x.shape[-1]
            stats[f"{name}.running_mean"] = 0.9 * mean + 0.1 * batch_mean
            stats[f"{name}.running_var"] = 0.9 * var + 0.1 * batch_var * (n / (n - 1))
            mean, var = batch_mean, batch_var
        return (x - mean) * lax.rsqrt(var + 1e-5) * p[f"{name}.weight"] + p[f"{name}.bias"]

    x = jax.nn.relu(norm(conv(images, p["conv1.weight"], 1), "bn1"))
    x = jax.nn.relu(norm(conv(x, p["conv2.weight"], 2), "bn2"))
    return jnp.mean(x, (1, 2)) @ p["fc.weight"].T + p["fc.bias"], stats


def small_predict(weights):
    """SmallNet in eval mode as images [B,32,32,3] -> logits [B,10]."""
    variables = small_variables(weights)
    return lambda images: small_apply(variables, images, False)[0]


def cnn_a_predict(weights):
    """cnn_a (alpha-beta-CROWN's adversarially trained CIFAR-10 net) as images -> logits [B,10]."""
    w = {k: jnp.asarray(v) for k, v in weights.items()}

    def predict(images):
        x = (images - w["mean"]) / w["std"]
        x = jax.nn.relu(conv(x, w["m.0.weight"], 2, w["m.0.bias"]))
        x = jax.nn.relu(conv(x, w["m.2.weight"], 2, w["m.2.bias"]))
        x = jnp.transpose(x, (0, 3, 1, 2)).reshape(x.shape[0], -1)  # torch flattens channel-first
        x = jax.nn.relu(x @ w["m.5.weight"].T + w["m.5.bias"])
        return x @ w["m.7.weight"].T + w["m.7.bias"]

    return predict
