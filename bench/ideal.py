"""What no server can surpass: one queue for all requests, from which whoever is free takes the next one. It is computed,
event by event, and costs nothing but the services themselves."""

import heapq
import random

from clients import percentile


def shared_queue_p99_s(clients, servers, pause_s, slow_share, slow_s, fast_s, seconds=120, seed=1):
    """The 99th percentile of the latency of fast requests: `clients` pause (exponential, mean `pause_s`), ask, and wait for
    the answer before they pause again. A share of the requests takes `slow_s`, all others `fast_s`."""
    chance = random.Random(seed)
    # When each client asks next, and when each server is free. The first to ask gets the first that is free.
    asking = [(chance.expovariate(1 / pause_s), n) for n in range(clients)]
    heapq.heapify(asking)
    free = [0.0] * servers
    heapq.heapify(free)
    latencies = []
    while asking[0][0] < seconds:
        asked, client = heapq.heappop(asking)
        is_slow = chance.random() < slow_share
        done = max(asked, heapq.heappop(free)) + (slow_s if is_slow else fast_s)
        heapq.heappush(free, done)
        if not is_slow:
            latencies.append(done - asked)
        heapq.heappush(asking, (done + chance.expovariate(1 / pause_s), client))
    return percentile(latencies, 0.99)
