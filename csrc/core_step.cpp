// One step of an LSTM with a fast weight memory over it (FWM), all in one call: for inference one token at a time.
#include "kernels.h"
#include "memory.h"
#include "packed.h"

namespace FW_ISA {

namespace {

constexpr int FEW_ROWS = 4;   // fewer meet the weights as they are; for more they are packed
constexpr int ROWS = 32;      // that go through the step together
constexpr int PANEL = Packed<Float32>::PANEL;

int whole_panels(int size) { return (size + PANEL - 1) / PANEL * PANEL; }

// A linear layer, y = W x + b with W [out, in]. Outputs may be written up to `whole_panels(out)`.
class Layer {
 public:
  const int in, out;

  Layer(const float* weight, int out, int in, bool pack, int threads)
      : in(in), out(out), weight(weight), packed(pack ? whole_panels(out) / PANEL : 0, in, threads, [=](int p, int c, int k) {
          const int row = p * PANEL + c;
          return row < out ? weight[std::size_t(row) * in + k] : 0.f;
        }), packs(pack) {}

  // y[r] += W x[r]; rows of x lie one after another.
  void add(int count, const float* x, float* y, int y_row) const {
    if (!packs) {
      for (int r = 0; r < count; ++r) tiles<8>(out, [&](int first, auto size) {
        dots<decltype(size)::value>(weight + std::size_t(first) * in, x + std::size_t(r) * in, y + r * y_row + first);
      });
      return;
    }
    const Operands<Float32> rows(x, count, in, nullptr);
    float found[ROWS * PANEL];
    for (int first = 0, panel = 0; first < out; first += PANEL, ++panel) {
      packed.multiply(panel, rows, found);
      for (int r = 0; r < count; ++r)
        for (int n = 0; n < PANEL; n += WIDTH) {
          float* to = y + r * y_row + first + n;
          store<WIDTH>(to, load<WIDTH>(to) + load<WIDTH>(found + r * PANEL + n));
        }
    }
  }

 private:
  const float* weight;
  const Packed<Float32> packed;
  const bool packs;

  template <int R>
  FW_INLINE void dots(const float* w, const float* x, float* y) const {
    vec<WIDTH> sums[R] = {};
    int k = 0;
    for (; k + WIDTH <= in; k += WIDTH)
      for (int r = 0; r < R; ++r) sums[r] += load<WIDTH>(w + std::size_t(r) * in + k) * load<WIDTH>(x + k);
    for (int r = 0; k < in && r < R; ++r)
      sums[r] += load<WIDTH>(w + std::size_t(r) * in + k, in - k) * load<WIDTH>(x + k, in - k);
    for (int r = 0; r < R; ++r) y[r] += sum<WIDTH>(sums[r]);
  }
};

// F after a write, from F0, and what its chain of reads finds.
template <int D>
void whole_memory_step(const FWMStepArguments& a, int64_t b, const float* F0, float* F, float* found) {
  using M = Memory<D>;
  const float *k1 = a.k1 + b * a.k1_row, *k2 = a.k2 + b * a.k2_row, *v = a.v + b * a.v_row;
  float old[D], y[D];
  M::read(1, k1, k2, F0, old);
  vec<M::W> squares = {}, growth = {}, delta[M::NV];
  for (int i = 0; i < M::SIZE; i += M::W) squares += load<M::W>(F0 + i) * load<M::W>(F0 + i);
  const float beta = a.beta[b * a.beta_row], half = M::dot(k1, k1) * M::dot(k2, k2) / 2;
  for (int n = 0; n < M::NV; ++n) {
    auto o = load<M::W>(old + n * M::W);
    delta[n] = beta * (load<M::W>(v + n * M::W) - o);
    growth += (o + half * delta[n]) * delta[n];
  }
  const float norm = sum<M::W>(squares) + 2 * sum<M::W>(growth);  // as in Row::write_scan
  const float factor = norm <= 1 ? 1.f : 1 / __builtin_sqrtf(norm);
  for (int s = 0; s < D; ++s)
    for (int r = 0; r < D; ++r) {
      const int row = (s * D + r) * D;
      const float address = k1[s] * k2[r];
      for (int n = 0; n < M::NV; ++n)
        store<M::W>(F + row + n * M::W, (load<M::W>(F0 + row + n * M::W) + address * delta[n]) * factor);
    }
  std::memcpy(found, a.n + b * a.n_row, sizeof(float) * D);
  for (int i = 0; i < a.hops; ++i) {
    M::read(1, found, a.e + b * a.e_row + i * D, F, y);
    M::normalise(1, y, found);
  }
}

// tanh of a number of floats that whole vectors of W hold.
template <int W>
FW_INLINE void squash(float* x, int count) {
  for (int i = 0; i < count; i += W) store<W>(x + i, tanh<W>(load<W>(x + i)));
}

template <int D>
struct CoreStep {
  const CoreStepArguments& a;
  const int I = int(a.I), H = int(a.H), hops = int(a.hops), writes = 3 * D + 1, reads = D + hops * D;
  const bool packs = a.B >= FEW_ROWS;
  const int threads = larger(1, smaller(int(a.threads), int(a.B + ROWS - 1) / ROWS));
  const Layer input{a.input_weight, 4 * H, I, packs, threads}, recurrent{a.recurrent_weight, 4 * H, H, packs, threads};
  const Layer write{a.write_weight, writes, H, packs, threads}, read{a.read_weight, reads, H, packs, threads};
  const Layer output{a.output_weight, H, D, packs, threads};

  void run() const {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t first = 0; first < a.B; first += ROWS) rows(first, smaller(ROWS, int(a.B - first)));
  }

  void rows(int64_t first, int count) const {
    const int wide = larger(whole_panels(4 * H), whole_panels(writes) + whole_panels(reads)), hidden = whole_panels(H);
    // not `workspace`, which a step of the log uses
    float* space = aligned_floats(std::size_t(count) * (wide + hidden + D + 1) + 2 * WIDTH);
    float *gates = space, *y = gates + std::size_t(count) * wide, *found = y + std::size_t(count) * hidden;
    float *strengths = found + count * D, *h = a.new_hidden + first * H;
    for (int i = 0; i < 4 * H; ++i) gates[i] = a.bias[i] + (a.second_bias ? a.second_bias[i] : 0.f);
    for (int i = H; i < 2 * H; ++i) gates[i] += float(a.forget_bias);
    for (int r = 1; r < count; ++r) std::memcpy(gates + r * wide, gates, sizeof(float) * 4 * H);
    input.add(count, a.x + first * I, gates, wide);
    recurrent.add(count, a.hidden + first * H, gates, wide);
    for (int r = 0; r < count; ++r) lstm(gates + r * wide, a.cell + (first + r) * H, a.new_cell + (first + r) * H, h + r * H);

    // keys, values, write strengths (eq. 1, 2) and queries (eq. 5, 6)
    float *written = gates, *queries = gates + std::size_t(count) * whole_panels(writes);
    const int written_row = whole_panels(writes), queries_row = whole_panels(reads);
    for (int r = 0; r < count; ++r) {
      std::memcpy(written + r * written_row, a.write_bias, sizeof(float) * writes);
      std::memcpy(queries + r * queries_row, a.read_bias, sizeof(float) * reads);
    }
    write.add(count, h, written, written_row);
    read.add(count, h, queries, queries_row);
    for (int r = 0; r < count; ++r) {
      float *row = written + r * written_row, *query = queries + r * queries_row;
      strengths[r] = float(a.write_scale) * sigmoid<1>(vec<1>{row[3 * D] + 1})[0];
      squash<Memory<D>::W>(row, 3 * D);
      if (a.tanh_first_query) squash<Memory<D>::W>(query, D);
      if (a.tanh_queries) squash<Memory<D>::W>(query + D, hops * D);
    }
    FWMStepArguments memory = a.log;
    memory.hops = hops;
    memory.k1 = written, memory.k2 = written + D, memory.v = written + 2 * D, memory.beta = strengths;
    memory.n = queries, memory.e = queries + D, memory.outputs = found;
    memory.k1_row = memory.k2_row = memory.v_row = written_row, memory.beta_row = 1;
    memory.n_row = memory.e_row = queries_row;
    if (a.memory) {
      const std::size_t size = Memory<D>::SIZE;
      for (int r = 0; r < count; ++r)
        whole_memory_step<D>(memory, r, a.memory + (first + r) * size, a.new_memory + (first + r) * size, found + r * D);
    } else {
      const int C = int(memory.capacity);
      memory.first_keys += first * D * C, memory.second_keys += first * D * C, memory.written += first * C * D;
      memory.decay += first * C, memory.squared_norm += first;
      for (int r = 0; r < count; r += Step<D>::ROWS) Step<D>{memory}.run(r, smaller(Step<D>::ROWS, count - r));
    }

    for (int r = 0; r < count; ++r) std::memcpy(y + r * hidden, a.output_bias, sizeof(float) * H);
    output.add(count, found, y, hidden);
    for (int r = 0; r < count; ++r)
      for (int unit = 0; unit < H; unit += WIDTH) {
        const int n = smaller(WIDTH, H - unit);
        vec<WIDTH> out = load<WIDTH>(y + r * hidden + unit, n);
        if (a.residual) out += load<WIDTH>(h + r * H + unit, n);
        store<WIDTH>(a.outputs + (first + r) * H + unit, out, n);
      }
    std::free(space);
  }

  void lstm(const float* gates, const float* cell, float* new_cell, float* out) const {
    for (int unit = 0; unit < H; unit += WIDTH) {
      const int n = smaller(WIDTH, H - unit);
      auto gate = [&](int g) { return load<WIDTH>(gates + g * H + unit, n); };
      vec<WIDTH> c = sigmoid<WIDTH>(gate(1)) * load<WIDTH>(cell + unit, n) + sigmoid<WIDTH>(gate(0)) * tanh<WIDTH>(gate(2));
      store<WIDTH>(new_cell + unit, c, n);
      store<WIDTH>(out + unit, sigmoid<WIDTH>(gate(3)) * tanh<WIDTH>(c), n);
    }
  }
};

}  // namespace

int core_step(const CoreStepArguments& a) {
  switch (a.d) {
    case 8: return CoreStep<8>{a}.run(), DONE;
    case 16: return CoreStep<16>{a}.run(), DONE;
    case 32: return CoreStep<32>{a}.run(), DONE;
    default: return UNSUPPORTED_SIZE;
  }
}

}  // namespace FW_ISA
