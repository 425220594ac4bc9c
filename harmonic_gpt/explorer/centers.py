"""Maps of the class centers: two dimensions of many, with what share of neighbors each map keeps."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from harmonic_gpt.evaluation.activations import centers_of, is_euclidean
from harmonic_gpt.evaluation.measures.geometry import nearest_rows, spectrum

NEAREST = 10  # centers listed of each token, and the neighbors whose keeping is counted
UMAP_NEIGHBORS = 15
SMALL = 20_000  # vocabulary up to which UMAP takes its full number of epochs
CHECKED = 2000  # tokens whose neighbors are counted
BLOCK = 1024  # tokens whose neighbors are looked up at a time
SEED = 0


@dataclass
class CenterMap:
    """The V centers of a model on its maps, and each one's nearest in the space itself."""

    by: str  # "distance" or "cosine"
    nearest: np.ndarray  # (V, k) int64, the token itself left out
    scores: np.ndarray  # (V, k) float32
    norms: np.ndarray  # (V,) float32
    mean: Tensor  # (D,) float64
    directions: Tensor  # (D, 2) float64
    variance_share: float  # of the two directions
    coordinates: dict[str, np.ndarray] = field(default_factory=dict)  # "pca", "umap" -> (V, 2) float32
    kept: dict[str, float] = field(default_factory=dict)  # map -> share of neighbors kept
    state_scale: float = 1.0  # factor on states before they are placed; not 1 for dot products alone

    def place(self, states: Tensor, nearest: Tensor, weights: Tensor) -> dict[str, np.ndarray]:
        """{map: (N, 2) float32}: where states lie on the maps.

        On PCA's by the same projection as the centers; a map without a formula has a state at the mean of its likeliest
        tokens' places.

        Args:
            states: (N, D), what the head compares with the centers. nearest: (N, k) token ids. weights: (N, k), rows
                that sum to 1.
        """
        scaled = states.double().cpu() * self.state_scale
        places = {"pca": ((scaled - self.mean) @ self.directions).float().numpy()}
        if "umap" in self.coordinates:
            known = self.coordinates["umap"][nearest.cpu().numpy()]  # (N, k, 2)
            places["umap"] = (known * weights.cpu().numpy()[..., None]).sum(1).astype(np.float32)
        return places


@torch.no_grad()
def map_centers(model: PreTrainedModel, like: "CenterMap | None", advance: Callable[[int], object]) -> CenterMap:
    """Nearest centers and PCA's map.

    Args:
        like: another model's map of the same tokens; the signs of this one's components are chosen to resemble it.
        advance: told the number of tokens that are done.
    """
    centers = centers_of(model).detach()
    principal = spectrum(centers)
    directions = principal.directions[:, :2]
    coordinates = (centers.double().cpu() - principal.mean) @ directions
    if like is not None:
        signs = torch.sign((coordinates * torch.from_numpy(like.coordinates["pca"]).double()).sum(0))
    else:  # the longer tail to the right and up
        signs = torch.sign(coordinates.pow(3).sum(0))
    signs[signs == 0] = 1
    by = "distance" if is_euclidean(model) else "cosine"
    nearest, scores = nearest_centers(centers, by, max(NEAREST, UMAP_NEIGHBORS - 1), advance)
    return CenterMap(
        by=by,
        nearest=nearest,
        scores=scores,
        norms=centers.norm(dim=1).cpu().numpy(),
        mean=principal.mean,
        directions=directions * signs,
        variance_share=0.0 if principal.collapsed else float(principal.variances[:2].sum() / principal.total),
        coordinates={"pca": (coordinates * signs).float().numpy()},
    )


def nearest_centers(
    centers: Tensor, by: str, count: int, advance: Callable[[int], object]
) -> tuple[np.ndarray, np.ndarray]:
    """The `count` centers nearest to each other one: ids (V, count) int64 and their distances or cosines float32."""
    count = min(count, len(centers) - 1)
    ids, scores = [], []
    for start in range(0, len(centers), BLOCK):
        queries = centers[start : start + BLOCK]
        found, _ = nearest_rows(centers, queries, count + 1, by)  # (B, count + 1)
        own = torch.arange(start, start + len(queries), device=found.device)[:, None]
        # The token itself is the first of the list but for rounding or a twin: it is left out wherever it stands
        others = found[(found != own) & ((found == own).any(1, keepdim=True) | _not_last(found))]
        others = others.view(len(queries), count)
        rows = centers[others]
        if by == "distance":
            values = (rows - queries[:, None]).norm(dim=-1)
        else:
            values = torch.nn.functional.cosine_similarity(rows, queries[:, None], dim=-1)
        order = values.argsort(dim=1, descending=by != "distance", stable=True)
        ids.append(others.gather(1, order).cpu().numpy())
        scores.append(values.gather(1, order).float().cpu().numpy())
        advance(len(queries))
    return np.concatenate(ids), np.concatenate(scores)


def _not_last(found: Tensor) -> Tensor:
    mask = torch.ones_like(found, dtype=torch.bool)
    mask[:, -1] = False
    return mask


def add_umap(centers: CenterMap, model: PreTrainedModel, like: CenterMap | None) -> None:
    """UMAP's map (McInnes et al. 2018, arXiv 1802.03426) from the neighbors that are known already, begun at PCA's,
    with a fixed seed. Turned or mirrored, not bent, to resemble `like`'s. Needs the extra `explore`."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its dependencies' own, and that a fixed seed means one thread
        from umap import UMAP

        size = len(centers.nearest)
        neighbors = min(UMAP_NEIGHBORS, size - 1)
        distances = centers.scores if centers.by == "distance" else 1 - centers.scores
        own = np.arange(size)[:, None]
        known = np.concatenate([own, centers.nearest], 1)[:, :neighbors].astype(np.int32)
        away = np.concatenate([np.zeros((size, 1)), distances], 1)[:, :neighbors].astype(np.float32)
        start = centers.coordinates["pca"]
        start = 10 * start / max(float(np.abs(start).max()), 1e-12)
        layout = UMAP(
            n_neighbors=neighbors,
            metric="euclidean" if centers.by == "distance" else "cosine",
            precomputed_knn=(known, away.clip(0), None),
            init=start + np.random.default_rng(SEED).normal(0, 1e-3, start.shape).astype(np.float32),
            n_epochs=200 if size <= SMALL else 100,
            random_state=SEED,
        ).fit_transform(centers_of(model).detach().cpu().numpy())
    layout = layout - layout.mean(0)
    if like is not None and "umap" in like.coordinates:
        left, _, right = np.linalg.svd(layout.T @ like.coordinates["umap"])
        layout = layout @ (left @ right)
    centers.coordinates["umap"] = layout.astype(np.float32)


def count_kept(centers: CenterMap) -> None:
    """For each map: of the NEAREST nearest centers in the space itself, the share that is among the NEAREST nearest
    points of the map. Mean over CHECKED tokens, or all."""
    size = len(centers.nearest)
    chosen = np.sort(np.random.default_rng(SEED).permutation(size)[:CHECKED])
    true = centers.nearest[chosen, :NEAREST]
    for name, points in centers.coordinates.items():
        near = nearest_points(torch.from_numpy(points), chosen, true.shape[1])
        centers.kept[name] = float((near[:, :, None] == true[:, None]).any(2).mean())


def nearest_points(points: Tensor, chosen: np.ndarray, count: int) -> np.ndarray:
    """(N, count) ids of the points nearest to some, themselves left out."""
    ids = []
    for block in torch.from_numpy(chosen).split(256):
        away = torch.cdist(points[block], points)
        away[torch.arange(len(block)), block] = torch.inf
        ids.append(away.topk(count, dim=1, largest=False).indices.numpy())
    return np.concatenate(ids)


@torch.no_grad()
def state_scale(model: PreTrainedModel, states: Tensor) -> float:
    """For a head of dot products, whose order of tokens does not depend on a state's length: the factor that makes
    states (N, D) as long as centers, so that both fit on one map."""
    centers = centers_of(model)
    return float(centers.norm(dim=1).median() / states.norm(dim=1).median().clamp(min=1e-12))
