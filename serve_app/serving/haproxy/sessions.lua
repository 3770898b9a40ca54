-- Names a session's server, as `serving/router.py` does behind Serve's own proxy: rendezvous hashing over the replicas,
-- unless the chosen one has many more open requests than the others. Without a name HAProxy chooses.
-- `header` and `backends` come before this. Servers are asked by get_stats: HAProxy 2.8's fetches by name, such as
-- srv_conn, cut the Lua string that they are given.

local function preferred(txn, backend, servers, key)
    local chosen, stats, best
    for _, name in ipairs(servers) do
        local hash = txn.c:xxh64(name .. "\0" .. key)
        if best == nil or hash > best then
            local found = backend.servers[name]:get_stats()
            if found["status"]:sub(1, 2) == "UP" then
                chosen, stats, best = name, found, hash
            end
        end
    end
    return chosen, stats
end

local function choose(txn, name)
    local limits, backend = backends[name], core.backends[name]
    local chosen, stats = preferred(txn, backend, limits.servers, txn.sf:req_hdr(header))
    if chosen == nil then
        return nil
    end
    local all = backend:get_stats()
    local own, others = stats["scur"], all["act"] - 1
    if others > 0 and own > limits.slack + limits.factor * (all["scur"] - own) / others then
        return nil
    end
    return chosen
end

core.register_action("session", { "http-req" }, function(txn, name)
    local server = choose(txn, name)
    if server ~= nil then
        txn:set_var("txn.session_server", server)
    end
end, 1)
