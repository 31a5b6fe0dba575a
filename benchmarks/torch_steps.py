"""The same train steps in PyTorch, written as one would write them for speed.

Frozen teachers run without a graph; the student's weights need no gradient while it is attacked; images are
channels-last unless asked otherwise; the ball and the pixel range are one clamp; optimisers are fused;
nothing is read back to the host. `wrap` is `torch.compile` or the identity, and gets whole passes with
their loss. What each step is: `ard_jax.methods`, whose numbers these are.
"""

import collections
import contextlib
import dataclasses
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from ard_jax.interop import torch_modules


@dataclasses.dataclass(frozen=True)
class Settings:
    """Numbers of a step: attack in [0,1] pixel units, SGD, precision, layout."""

    eps: float
    step_size: float
    steps: int
    classes: int
    lr: float
    momentum: float
    weight_decay: float
    teacher_lr: float
    teacher_momentum: float
    device: str = "cpu"
    bf16: bool = False
    channels_last: bool = True
    pad: int = 4


def network(model, classes, size, options, state, settings):
    """A network of ours as a torch Module, from a state dict of float32 tensors, ready to be trained."""
    whole = torch_modules.create(model, classes, [size, size, 3], options)
    missing, unexpected = whole.load_state_dict(state, strict=False)
    wrong = [n for n in missing if not n.startswith("normalization") and "num_batches" not in n]
    if wrong or unexpected:
        raise ValueError(f"{model}: weights do not fit: missing {wrong}, unexpected {unexpected}")
    layers = {path.replace(".", "__"): whole.get_submodule(path) for path in whole.order}
    if "normalization.mean" in state:  # else the pixels go in as they are
        layers = {"normalization": whole.normalization} | layers
    net = nn.Sequential(collections.OrderedDict(layers)).to(settings.device)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked = None  # a counter that nothing reads, one kernel per layer
    return net.to(memory_format=torch.channels_last) if settings.channels_last else net


def kl(student, teacher, temperature=1.0, student_temperature=1.0):
    """KL of every example in the papers' form, log(b + 1e-5) on the teacher's side."""
    b = functional.softmax(teacher / temperature, -1)
    a = functional.log_softmax(student / student_temperature, -1)
    return (b * (torch.log(b + 1e-5) - a)).sum(-1)


def _ascend(adv, gradient, size, low, high):
    return torch.clamp(adv + size * gradient.sign(), low, high)


def _ascend_in_place(adv, gradient, size, low, high):
    return gradient.sign_().mul_(size).add_(adv).clamp_(low, high)


class Step:
    """Adversarial training: x' against the student, then L = CE(S(x'), y). Other methods change parts.

    Calling it with uint8 images [B,H,W,C] and int64 labels [B] is a whole step and returns its loss;
    `update` is the step without augmentation and random start.
    """

    def __init__(
        self, nets: dict[str, nn.Module], settings: Settings, wrap: Callable | None = None
    ):
        """Networks by role, "student" first; they are trained in place."""
        self.nets, self.s, self.student = nets, settings, nets["student"].train()
        for role, net in nets.items():
            if role != "student":
                net.eval().requires_grad_(False)
        compiled = wrap or (lambda function: function)
        self._augment, self._attack_loss = compiled(self.augment), compiled(self.attack_loss)
        self._loss, self._logits = compiled(self.loss), {r: compiled(n) for r, n in nets.items()}
        self._ascend = compiled(_ascend) if wrap else _ascend_in_place
        s = settings
        self.optimizer = self._sgd(self.student, s.lr, s.momentum)
        self.lambdas = torch.arange(s.steps, device=s.device) / (2.0 * s.steps)

    def _sgd(self, net, lr, momentum):
        decay = self.s.weight_decay
        return torch.optim.SGD(net.parameters(), lr, momentum, weight_decay=decay, fused=True)

    def autocast(self):
        """Bfloat16 where asked, nothing otherwise."""
        if not self.s.bf16:
            return contextlib.nullcontext()
        return torch.autocast(torch.device(self.s.device).type, torch.bfloat16)

    def pass_of(self, net, x):
        """Logits [B,K] float32 of a network as it stands."""
        with self.autocast():
            return net(x).float()

    @torch.no_grad()
    def frozen(self, role, x):
        """Eval-mode logits of a network, a constant."""
        return self.pass_of(self._logits[role], x)

    def augment(self, images):
        """Zero padding, random crop, random flip: uint8 [B,H,W,C] -> float32 [B,C,H,W] in [0,1]."""
        pad, (b, h, w, _) = self.s.pad, images.shape
        where = images.device
        padded = functional.pad(images, (0, 0, pad, pad, pad, pad))
        top, left = torch.randint(0, 2 * pad + 1, (2, b, 1), device=where)
        rows, columns = top + torch.arange(h, device=where), torch.arange(w, device=where)
        flip = torch.rand(b, 1, device=where) < 0.5
        columns = left + torch.where(flip, w - 1 - columns, columns)
        example = torch.arange(b, device=where)[:, None, None]
        x = padded[example, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        return (x if self.s.channels_last else x.contiguous()).float() / 255

    def start(self, x):
        """First iterate of the attack: PGD's uniform one, cut to the pixel range."""
        return (x + torch.empty_like(x).uniform_(-self.s.eps, self.s.eps)).clamp_(0, 1)

    def attack(self, x, y, start, target=None):
        """Adversarial images; the student in eval mode, its weights without gradient."""
        self.student.eval().requires_grad_(False)
        low, high = torch.clamp(x - self.s.eps, min=0), torch.clamp(x + self.s.eps, max=1)
        adv = start.detach()
        for i in range(self.s.steps):
            adv.requires_grad_(True)
            loss = self._attack_loss(adv, y, self.lambdas[i], target)
            (gradient,) = torch.autograd.grad(loss, adv)
            with torch.no_grad():
                adv = self._ascend(adv.detach(), gradient, self.s.step_size, low, high)
        self.student.train().requires_grad_(True)
        return adv

    def attack_loss(self, adv, y, lam, target):
        """What the attack ascends, summed over the batch."""
        return self.objective(self.pass_of(self.student, adv), y, lam, target)

    def objective(self, z, y, lam, target):
        """Cross-entropy, CIARD's, MTARD's and PGD training's."""
        return functional.cross_entropy(z, y, reduction="sum")

    def before(self, x):
        """What the attack needs beside the labels."""
        return None

    def after(self, x, adv, target):
        """Further arguments of `loss`."""
        return ()

    def loss(self, x, adv, y):
        """The training loss, train-mode passes included."""
        return functional.cross_entropy(self.pass_of(self.student, adv), y)

    def update(self, x, y, start):
        """One update from float images [B,C,H,W], labels and the attack's first iterate."""
        target = self.before(x)
        adv = self.attack(x, y, start, target)
        loss = self._loss(x, adv, y, *self.after(x, adv, target))
        if isinstance(loss, tuple):
            loss = self.remember(*loss)
        return self.descend(self.optimizer, loss)

    def remember(self, loss, *memory):
        """Keeps what the next step needs; returns the loss."""
        raise NotImplementedError

    def descend(self, optimizer, loss):
        """Gradient and update."""
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach()

    def __call__(self, images, labels):
        """A whole step."""
        x = self._augment(images)
        return self.update(x, labels, self.start(x))
