"""The ``numpy`` kernel: what every other one is compared with, and what runs where no other can."""
