"""Images from the network and from untrusted bytes."""
