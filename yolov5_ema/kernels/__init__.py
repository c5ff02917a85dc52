"""What the blocks compute: plain torch, C++ and Triton, and the choice between them."""
