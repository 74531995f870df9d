"""How well a merge did: embedders, pure metrics, data sets, pair manifests, and the verb `evaluate`."""
