"""Container images: from a reference as people write it to directories of layers and what the image asks for.

skopeo fetches, verifies and unpacks, into a store of layers that is ours (`store`); we read that store.
`fetch.get` is the one function that others need. Not the guest's image, which is `guestimage`'s.
"""
