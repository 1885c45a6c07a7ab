"""The guest image: a recipe, a builder, a content-addressed store. Never touches a running VM.

`store` finds an image and is cheap to import; `build.ensure_image` makes one. Import those, not this.
"""
