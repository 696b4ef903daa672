// bench/peer_gloo_collectives.cc: collectives of Gloo on one host, over loopback TCP, which is the
// transport it has between processes of a machine: a peer of `troupe bench collectives`.
//
//   peer_gloo_collectives RANKS [SECONDS] [OPS]
//
// forks the ranks; SECONDS a row (0.3); OPS: all, or names of the first column separated by commas.
// Gloo's own algorithms where it chooses (allreduce: its ring). Built where Gloo is installed.
#include <gloo/allgather.h>
#include <gloo/allreduce.h>
#include <gloo/alltoall.h>
#include <gloo/barrier.h>
#include <gloo/broadcast.h>
#include <gloo/math.h>
#include <gloo/rendezvous/context.h>
#include <gloo/rendezvous/file_store.h>
#include <gloo/transport/tcp/device.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <memory>
#include <stdexcept>

#include "peer_rows.h"

namespace {

using Context = std::shared_ptr<gloo::rendezvous::Context>;

Context connect(int rank, int size, const std::string& directory) {
  auto context = std::make_shared<gloo::rendezvous::Context>(rank, size);
  gloo::rendezvous::FileStore store(directory);
  gloo::transport::tcp::attr loopback;
  loopback.hostname = "127.0.0.1";
  auto device = gloo::transport::tcp::CreateDevice(loopback);
  context->connectFullMesh(store, device);
  return context;
}

template <class T>
void all_reduce(const Context& context, std::vector<T>& data,
                void (*reduce)(void*, const void*, const void*, size_t)) {
  gloo::AllreduceOptions options(context);
  options.setOutput(data.data(), data.size());
  options.setReduceFunction(reduce);
  gloo::allreduce(options);
}

peer::Rows::Library library_of(const Context& context) {
  return {.barrier =
              [context] {
                gloo::BarrierOptions options(context);
                gloo::barrier(options);
              },
          .maximum =
              [context](std::vector<double>& values) {
                all_reduce(context, values, &gloo::max<double>);
              }};
}

void reduction_rows(const Context& context, const peer::Rows& rows) {
  for (const size_t bytes : peer::kReduced) {
    std::vector<float> data(bytes / sizeof(float));
    rows.add("allreduce fp32", "", bytes, [&] { all_reduce(context, data, &gloo::sum<float>); });
  }
  for (const size_t bytes : peer::kReduced) {
    std::vector<char> data(bytes);
    gloo::BroadcastOptions options(context);
    options.setOutput(data.data(), bytes);
    options.setRoot(0);
    rows.add("broadcast", "", bytes, [&] { gloo::broadcast(options); });
  }
}

void gather_rows(const Context& context, const peer::Rows& rows) {
  for (const size_t bytes : peer::kGathered) {
    std::vector<char> in(bytes * context->size), out(bytes * context->size);
    gloo::AllgatherOptions gather(context);
    gather.setInput(in.data(), bytes);
    gather.setOutput(out.data(), out.size());
    rows.add("allgather", rows.per_rank(bytes), out.size(), [&] { gloo::allgather(gather); });
    gloo::AlltoallOptions exchange(context);
    exchange.setInput(in.data(), in.size());
    exchange.setOutput(out.data(), out.size());
    rows.add("alltoall", rows.per_rank(bytes), out.size(), [&] { gloo::alltoall(exchange); });
  }
}

void run_rank(int rank, int size, const std::string& directory, double seconds,
              const std::string& ops) {
  const Context context = connect(rank, size, directory);
  const peer::Rows::Library library = library_of(context);
  const peer::Rows rows(rank, size, library, seconds, ops);
  rows.add("barrier", "", 0, library.barrier);
  reduction_rows(context, rows);
  gather_rows(context, rows);
  library.barrier();  // nobody closes its sockets while others still use them
}

}  // namespace

int main(int argc, char** argv) {
  const int size = argc > 1 ? std::atoi(argv[1]) : 0;
  if (size < 1 || size > 64) {
    std::fprintf(stderr, "usage: peer_gloo_collectives RANKS [SECONDS] [OPS]\n");
    return 2;
  }
  const double seconds = argc > 2 ? std::atof(argv[2]) : 0.3;
  const std::string ops = argc > 3 ? argv[3] : "all";
  char directory[] = "/tmp/peer_gloo_XXXXXX";
  if (::mkdtemp(directory) == nullptr) return 1;
  for (int rank = 0; rank < size; ++rank)
    if (::fork() == 0) {
      try {
        run_rank(rank, size, directory, seconds, ops);
        std::_Exit(0);
      } catch (const std::exception& error) {
        std::fprintf(stderr, "rank %d: %s\n", rank, error.what());
        std::_Exit(1);
      }
    }
  int worst = 0;
  for (int status = 0; ::wait(&status) > 0;) worst |= status;
  std::filesystem::remove_all(directory);
  return worst == 0 ? 0 : 1;
}
