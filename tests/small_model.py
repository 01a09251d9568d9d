"""The smallest model that has every part: settings for tests of what is trained, not of how well."""

SMALL_MODEL = {
    "model.image_size": 16,
    "model.patch_size": 8,
    "model.width": 24,
    "model.depth": 1,
    "model.heads": 2,
    "model.mlp": 32,
    "model.latent_dim": 6,
    "model.projector_hidden": 32,
    "model.predictor_depth": 1,
    "model.predictor_heads": 2,
    "model.predictor_head_dim": 8,
    "model.predictor_mlp": 32,
    "model.dropout": 0.0,
}
