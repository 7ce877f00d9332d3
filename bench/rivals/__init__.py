"""What Shardline is measured against: PyTorch alone, over RPC, and over gloo. Only these use torch.

Each runs in processes of its own, so that nothing of torch disturbs our client.
"""
