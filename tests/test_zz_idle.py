import asyncio, time, resource, os
from tests.shop import *
from tests.workers.working import *
def cpu(pid):
    import pathlib; f = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")",1)[1].split()
    return (int(f[11])+int(f[12]))/os.sysconf("SC_CLK_TCK")
async def test_idle(stores):
    N=200
    for i in range(N): await new_shop(stores, seats_count=4)
    async with process(stores) as w:
        async def ok(): return (await stores.postgres.fetchval("select count(*) from sales where store_state='open'"))==N
        t=time.time(); await until(ok, within_s=60); print("\nopened", N, "in", time.time()-t)
        await asyncio.sleep(3)
        c0=cpu(w.pid); q0=await stores.postgres.fetchval("select xact_commit from pg_stat_database where datname=current_database()"); r0=(await stores.redis.info())["total_commands_processed"]
        await asyncio.sleep(8)
        q1=await stores.postgres.fetchval("select xact_commit from pg_stat_database where datname=current_database()"); r1=(await stores.redis.info())["total_commands_processed"]
        print("cpu %.1f%%"%(100*(cpu(w.pid)-c0)/8), "pg/s", (q1-q0)/8, "redis/s", (r1-r0)/8, "conns", (await stores.redis.info())["connected_clients"])
