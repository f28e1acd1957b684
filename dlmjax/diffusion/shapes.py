"""Names of the array types that repeat in signatures. Shapes: B batch, L length, V vocabulary, E entries of a vector; `*n` any shape."""

from jaxtyping import Array, Bool, Float, Int, Key, Shaped

# Of a batch of rows.
RowKeys = Key[Array, "B"]  # one key per row
Tokens = Int[Array, "B L"]
PerToken = Float[Array, "B L"]  # a number for each token: its time, weight or nats
Mask = Bool[Array, "B L"]
State = Shaped[Array, "B L *state"]
VectorState = Float[Array, "B L E"]
Views = tuple[tuple[State, PerToken], ...]  # (z, t) of each time that a training step denoises a row
Logits = Float[Array, "B L V"]

# Elementwise, of any shape: of the positions that carry loss alone, where logits exist for no others.
Ids = Int[Array, "*n"]
Values = Float[Array, "*n"]
Flags = Bool[Array, "*n"]
PerClass = Float[Array, "*n V"]  # a number for each class: the output of the denoiser, logarithms of probabilities
Vectors = Float[Array, "*n E"]
AnyState = Shaped[Array, "..."]
