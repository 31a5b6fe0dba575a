"""The methods' parts of `torch_steps.Step`."""

import torch
from torch.nn import functional

from benchmarks.torch_steps import Step, kl

SAT = Step


class Natural(Step):
    """L = CE(S(x), y), no attack."""

    def start(self, x):
        """There is none."""
        return x

    def attack(self, x, y, start, target=None):
        """There is none."""
        return x


class Gaussian(Step):
    """Attacks from x + 0.001 N(0, I)."""

    def start(self, x):
        """Not cut to the range."""
        return torch.randn_like(x).mul_(0.001).add_(x)


class Trades(Gaussian):
    """L = CE(S(x), y) + 6 KL(p(x) || p(x')), gradient through both."""

    beta = 6.0

    def before(self, x):
        """p(x) in eval mode."""
        self.student.eval()
        return functional.softmax(self.frozen("student", x), -1)

    def objective(self, z, y, lam, target):
        """KL up to a constant."""
        return -(target * functional.log_softmax(z, -1)).sum()

    def update(self, x, y, start):
        """The clean pass's statistics count twice, as the original's second clean pass makes them."""
        adv = self.attack(x, y, start, self.before(x))
        running = [b for b in self.student.buffers() if b.is_floating_point()]
        old = torch._foreach_mul(running, 0.9)
        z_nat = self.pass_of(self._logits["student"], x)
        batch = torch._foreach_sub(running, old)  # a tenth of the batch's own
        loss = self.descend(self.optimizer, self._loss(z_nat, adv, y))
        torch._foreach_mul_(running, 0.9)
        torch._foreach_add_(running, batch)
        return loss

    def loss(self, z_nat, adv, y):
        """S(x') and the two terms."""
        log_nat = functional.log_softmax(z_nat, -1)
        log_adv = functional.log_softmax(self.pass_of(self.student, adv), -1)
        divergence = (log_nat.exp() * (log_nat - log_adv)).sum(-1).mean()
        return functional.nll_loss(log_nat, y) + self.beta * divergence


class Rslad(Gaussian):
    """L = 5/6 KL(T(x), S(x')) + 1/6 KL(T(x), S(x)), means over batch and classes."""

    def before(self, x):
        """T(x)."""
        return self.frozen("robust", x)

    def objective(self, z, y, lam, target):
        """KL towards T(x), up to a constant."""
        return -(functional.softmax(target, -1) * functional.log_softmax(z, -1)).sum()

    def after(self, x, adv, target):
        """T(x), once made."""
        return (target,)

    def loss(self, x, adv, y, soft):
        """S(x'), then S(x)."""
        z_adv, z_nat = self.pass_of(self.student, adv), self.pass_of(self.student, x)
        l_adv, l_nat = kl(z_adv, soft).mean(), kl(z_nat, soft).mean()
        return (5 * l_adv + l_nat) / (6 * self.s.classes)


class Mtard(Gaussian):
    """L = wa KL(T(x'), S(x')) + wn KL(Tn(x), S(x)) with weights that follow the losses."""

    memory = None

    def after(self, x, adv, target):
        """Both teachers' logits, the weight of the clean branch and the first losses."""
        if self.memory is None:
            self.memory = torch.full((3,), 0.5, device=x.device), torch.tensor(True).to(x.device)
        return self.frozen("robust", adv), self.frozen("clean", x), *self.memory

    def loss(self, x, adv, y, soft_adv, soft_nat, memory, is_first):
        """S(x'), then S(x)."""
        z_adv, z_nat = self.pass_of(self.student, adv), self.pass_of(self.student, x)
        l_adv = kl(z_adv, soft_adv).mean() / self.s.classes
        l_nat = kl(z_nat, soft_nat).mean() / self.s.classes
        now = torch.stack([l_adv, l_nat]).detach()
        first = torch.where(is_first, now, memory[1:])
        ratio = now / first
        w = memory[0] - 0.025 * (memory[0] - ratio[1] / ratio.sum())
        after = torch.cat([w[None], first])
        return (1 - w) * l_adv + w * l_nat, after, torch.zeros_like(is_first)

    def remember(self, loss, *memory):
        """Weight and first losses."""
        self.memory = memory
        return loss


class Dard(Step):
    """L = mean over x and x' of 0.7 KD (T = 3) + 0.3 CE; x' by DPGD."""

    a, temperature = 0.7, 3.0

    def start(self, x):
        """No random start."""
        return x

    def objective(self, z, y, lam, target):
        """Soft Dice of the right and of the misclassified images, one scalar for each set."""
        p = functional.softmax(z, -1)
        q = p * (1 - functional.one_hot(y, p.shape[-1]))
        error, squares = q.sum(-1).square() + q.square().sum(-1), p.square().sum(-1)
        right = (z.argmax(-1) == y).float()

        def dice(mask):
            return (mask * error).sum() / (mask.sum() + (mask * squares).sum() + 1e-5)

        return (1 - lam) * dice(right) + lam * dice(1 - right)

    def after(self, x, adv, target):
        """g(x) and g(x')."""
        return self.frozen("robust", x), self.frozen("robust", adv)

    def branch(self, z, teacher, y):
        """KD and CE."""
        t = self.temperature
        q = functional.softmax(teacher / t, -1)
        soft = functional.kl_div(functional.log_softmax(z / t, -1), q, reduction="batchmean")
        return self.a * t * t * soft + (1 - self.a) * functional.cross_entropy(z, y)

    def loss(self, x, adv, y, g_nat, g_adv):
        """f(x), then f(x')."""
        nat = self.branch(self.pass_of(self.student, x), g_nat, y)
        return (nat + self.branch(self.pass_of(self.student, adv), g_adv, y)) / 2


class Ciard(Gaussian):
    """CIARD in an epoch that trains the robust teacher."""

    def __init__(self, nets, settings, wrap=None):
        """R is trained too."""
        super().__init__(nets, settings, wrap)
        self.robust = nets["robust"].train().requires_grad_(True)
        self.teacher_optimizer = self._sgd(
            self.robust, settings.teacher_lr, settings.teacher_momentum
        )
        self.temperatures = torch.ones(2, device=settings.device)

    def update(self, x, y, start):
        """S(x), x', R(x') in train mode, N(x) and N(x'), S(x'); S's update, then R's."""
        z_nat = self.pass_of(self._logits["student"], x)
        adv = self.attack(x, y, start)
        z_r = self.pass_of(self._logits["robust"], adv)
        soft = z_r.detach(), self.frozen("clean", x), self.frozen("clean", adv)
        loss, self.temperatures = self._loss(z_nat, adv, y, *soft, self.temperatures)
        loss = self.descend(self.optimizer, loss)
        self.descend(self.teacher_optimizer, functional.cross_entropy(z_r, y))
        return loss

    def loss(self, z_nat, adv, y, r_adv, n_nat, n_adv, temperatures):
        """L1 + L2 - s L3 and the temperatures of the next step."""
        z_adv, classes = self.pass_of(self.student, adv), self.s.classes
        l1 = kl(z_adv, r_adv, temperatures[0]).mean() / classes
        l2 = kl(z_nat, n_nat, temperatures[1]).mean() / classes
        wrong = (n_adv.argmax(-1) != y).float()
        count = wrong.sum()
        l3 = (wrong * kl(z_adv, n_adv, 1.0, 5.0)).sum() / (count.clamp(min=1) * classes)
        with torch.no_grad():
            sizes = torch.stack([l1, l2, l3]).abs()
            decades = torch.floor(torch.log10(torch.where(sizes == 0, 1e-7, sizes)))
            scale = 10.0 ** (torch.minimum(decades[0], decades[1]) - decades[2])
            scale = torch.where(count > 0, scale, 0.0)
            after = self._balance(r_adv, n_nat, temperatures)
        return l1 + l2 - scale * l3, after

    def _balance(self, r_adv, n_nat, temperatures):
        p = [functional.softmax(z / t, -1) for z, t in zip((r_adv, n_nat), temperatures)]  # noqa: B905
        h = torch.stack([(q * torch.log(q + 1e-5)).sum(-1).mean() for q in p])
        direction = torch.nan_to_num(torch.sign(h / h.flip(0) - 1))
        return torch.clamp(temperatures - 1e-3 * direction, 1.0, 10.0)


METHODS = {
    "natural": Natural,
    "sat": SAT,
    "trades": Trades,
    "rslad": Rslad,
    "mtard": Mtard,
    "ciard": Ciard,
    "dard": Dard,
}
