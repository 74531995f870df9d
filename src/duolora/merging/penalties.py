"""The penalties on masks, from one row that holds all of them: a handful of operations, however many modules there are.

What has no such form (a norm that is no sum, the cosine) is computed module by module from the same row.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from duolora.merging.options import MergeOptions
from duolora.model.mount import Mount
from duolora.paper import ziplora
from duolora.paper.choices import Role
from duolora.paper.layer_prior import layer_prior_loss, layer_prior_loss_of_sums


class Penalties:
    """Eq. 1 over all modules, and ZipLoRA's similarity, of a row of `mount` with a content and a style adapter."""

    def __init__(self, mount: Mount, roles: Mapping[str, Role], options: MergeOptions) -> None:
        """Where in the row everything is; found once."""
        self._mount, self._roles, self._options = mount, roles, options
        where = mount.unflat(torch.arange(mount.columns, device=mount.device))
        led = [name for name, role in roles.items() if role != "neutral"]
        self._led = len(led)
        self._content_leads = torch.tensor([roles[name] == "content" for name in led], device=mount.device).bool()
        owner = torch.full((mount.columns,), 2 * self._led, device=mount.device)
        for side, places in enumerate(where):
            for k, name in enumerate(led):
                owner[places.get(name, owner[:0])] = side * self._led + k
        self._owner = owner
        shared = [name for name in where[0] if name in where[1]] if options.masks in ("output", "input") else []
        nothing = owner[:0]
        self._pairs = [torch.cat([nothing, *(places[name] for name in shared)]) for places in where]
        sizes = [len(where[0][name]) for name in shared]
        self._shares = torch.cat([torch.full((n,), 1 / n, device=mount.device) for n in sizes] or [torch.zeros(0)])

    def layer_prior(self, row: Float[Tensor, " columns"]) -> Float[Tensor, ""]:
        """L_layer_prior (Eq. 1)."""
        o = self._options
        if o.norm != "diag":
            nothing = row.new_zeros(0)
            m_c, m_s = self._mount.unflat(row)
            layers = [(m_c.get(n, nothing), m_s.get(n, nothing), role) for n, role in self._roles.items()]
            return layer_prior_loss(layers, o.prior_lambda, o.norm, o.hinge, o.reduction, o.sparsity)
        sums = row.new_zeros(2 * self._led + 1).index_add(0, self._owner, row.abs())[:-1]
        c, s = sums[: self._led], sums[self._led :]
        return layer_prior_loss_of_sums(c, s, self._content_leads, o.prior_lambda, o.hinge, o.reduction, o.sparsity)

    def similarity(self, row: Float[Tensor, " columns"]) -> Float[Tensor, ""]:
        """ZipLoRA's penalty on masks that overlap."""
        if self._options.similarity != "product" or self._options.masks not in ("output", "input"):
            m_c, m_s = self._mount.unflat(row)
            return ziplora.similarity([(m_c[n], m_s[n]) for n in m_c if n in m_s], self._options.similarity)
        content, style = (row[places] for places in self._pairs)
        return (content * style).abs() @ self._shares
