/* A load generator for one server on the loopback: requests leave when they are due, whatever became of earlier ones.

   sender PORT SECONDS RATE CONNECTIONS FILE

   FILE holds whole HTTP/1.1 requests, each after its length (unsigned, 32 bits, this machine's order); they are sent in
   order, again and again. RATE 0 is a closed loop: each connection sends its next request when it has the answer.
   A request that is due while no connection is free waits in a queue, and the time is counted from when it was due. The
   lag is how much later than due this program looked at a request: what is its own fault. From a thousand requests a
   second on an answer does not wake it up, which would take the processor from the server each time: it looks when the
   next request is due, so times are too long by half of the pause between two requests on average. With many
   connections, which are there to ask for too much, it looks every half millisecond: each wake-up would cost the server
   more of the processor than the request does. With a rate and few connections it asks to be run before everybody else (SCHED_FIFO, or a niceness of -20) and does without where that is
   not allowed; `priority` says which. SIGTERM ends it early. One line of JSON at the end; times in milliseconds. Answers
   need a Content-Length. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/epoll.h>
#include <sys/prctl.h>
#endif

#define SECOND 1000000000LL
#define GRACE (10 * SECOND)    /* so long after the end answers are waited for */
#define BUFFER (4 << 20)       /* the longest answer */
#define FEW 256                /* connections; a generator with more, run before everybody else, would starve the server */
#define AT_ONCE 256            /* connections looked at before the clock is */
#define DENSE 1000             /* requests a second; from there on answers wait until the next request is due */
#define PAUSE 500000           /* so long, ns, a dense generator with many connections sleeps at least */
#define DEGRADED "\"degraded\":true"

typedef struct { const char *data; uint32_t size; } request;
typedef struct { int64_t due; uint32_t number; } waiting;
typedef struct { float *at; size_t count, room; } times;

typedef struct {
  int fd, is_busy, must_close, wants_room;
  const char *rest;            /* what of the request is still to be written */
  size_t left;
  int64_t due, sent;
  char *buffer;
  size_t held, room;
} connection;

static request *requests;
static uint32_t request_count;
static connection *connections;
static int connection_count, busy;
static int *idle;              /* a ring of connections that are free, used longest ago first */
static size_t idle_first, idle_count;
static waiting *queue;         /* a ring of requests that are due and found no connection */
static size_t queue_first, queue_count, queue_room;
static times lag, ok_due, ok_sent, refused_due, refused_sent;
static int64_t in_time, failed, dropped, degraded, bytes;
static struct sockaddr_in address;
static int64_t began, end, due, due_number;
static double rate;
static volatile sig_atomic_t is_asked_to_end;
static uint32_t next_request;

static void on_signal(int number) {
  (void)number;
  is_asked_to_end = 1;
}

static int64_t now(void) {
  struct timespec moment;
  clock_gettime(CLOCK_MONOTONIC, &moment);
  return moment.tv_sec * SECOND + moment.tv_nsec;
}

static void *must(void *memory) {
  if (!memory) { fprintf(stderr, "out of memory\n"); exit(1); }
  return memory;
}

static void add(times *some, int64_t nanoseconds) {
  if (some->count == some->room) {
    some->room = some->room ? 2 * some->room : 4096;
    some->at = must(realloc(some->at, some->room * sizeof *some->at));
  }
  some->at[some->count++] = (float)nanoseconds / 1e6f;
}

/* Who is ready is asked of the system, which costs the same for ten connections and for thousands; where there is no
   epoll, all are looked through. */
#ifdef __linux__
static int watcher;
static struct epoll_event ready[AT_ONCE];
#else
static struct pollfd *polled;
#endif

static void prepare_watch(void) {
#ifdef __linux__
  watcher = epoll_create1(0);
  if (watcher < 0) { perror("epoll_create1"); exit(1); }
#else
  polled = must(calloc(connection_count, sizeof *polled));
  for (int number = 0; number < connection_count; number++) polled[number].fd = -1;
#endif
}

static void watch(int number, int is_new, int for_room) {
  connection *c = &connections[number];
#ifdef __linux__
  if (!is_new && c->wants_room == for_room) return;
  struct epoll_event event = {.events = EPOLLIN | (for_room ? EPOLLOUT : 0), .data.u32 = (uint32_t)number};
  if (epoll_ctl(watcher, is_new ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, c->fd, &event) < 0) { perror("epoll_ctl"); exit(1); }
#else
  (void)is_new;
  polled[number] = (struct pollfd){.fd = c->fd, .events = POLLIN | (for_room ? POLLOUT : 0)};
#endif
  c->wants_room = for_room;
}

static void close_connection(int number) {
  close(connections[number].fd);     /* nobody watches it any more */
  connections[number].fd = -1;
#ifndef __linux__
  polled[number].fd = -1;
#endif
}

static void rest(int number) {
  idle[(idle_first + idle_count++) % connection_count] = number;
}

static int open_connection(int number) {
  connection *c = &connections[number];
  int one = 1;
  c->fd = socket(AF_INET, SOCK_STREAM, 0);
  if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&address, sizeof address) < 0) {
    if (c->fd >= 0) close(c->fd);
    c->fd = -1;
    return 0;
  }
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  fcntl(c->fd, F_SETFL, fcntl(c->fd, F_GETFL) | O_NONBLOCK);
  c->left = c->held = 0;
  c->must_close = 0;
  watch(number, 1, 0);
  return 1;
}

static void write_rest(int number) {
  connection *c = &connections[number];
  while (c->left) {
    ssize_t done = send(c->fd, c->rest, c->left, MSG_NOSIGNAL);
    if (done < 0) {
      if (errno == EINTR) continue;
      break;                   /* full: it is said when there is room; broken: the read finds out */
    }
    c->rest += done;
    c->left -= done;
  }
  watch(number, 0, c->left > 0);
}

static void ask(int number, int64_t due, uint32_t which) {
  connection *c = &connections[number];
  c->is_busy = 1;
  busy++;
  c->rest = requests[which].data;
  c->left = requests[which].size;
  c->due = due;
  c->sent = now();
  write_rest(number);
}

static uint32_t take(void) {
  uint32_t which = next_request;
  next_request = (next_request + 1) % request_count;
  return which;
}

/* The connection can be used: for what waits, or, in a closed loop, for the next request. */
static void go_on(int number) {
  if (queue_count) {
    waiting first = queue[queue_first];
    queue_first = (queue_first + 1) % queue_room;
    queue_count--;
    ask(number, first.due, first.number);
  } else if (rate == 0) {
    int64_t moment = now();
    if (moment < end) ask(number, moment, take());
  } else {
    rest(number);
  }
}

static void wait_in_queue(int64_t due, uint32_t which) {
  if (queue_count == queue_room) {
    size_t room = queue_room ? 2 * queue_room : 1024;
    waiting *larger = must(malloc(room * sizeof *larger));
    for (size_t at = 0; at < queue_count; at++) larger[at] = queue[(queue_first + at) % queue_room];
    free(queue);
    queue = larger;
    queue_room = room;
    queue_first = 0;
  }
  queue[(queue_first + queue_count++) % queue_room] = (waiting){due, which};
}

static void lost(int number) {
  connection *c = &connections[number];
  close_connection(number);
  if (c->is_busy) {
    c->is_busy = 0;
    busy--;
    failed++;
    if (open_connection(number)) go_on(number); else dropped++;
  } else if (!open_connection(number)) {
    dropped++;
  }
}

static void answered(int number, int status) {
  connection *c = &connections[number];
  int64_t moment = now();
  c->is_busy = 0;
  busy--;
  if (status >= 200 && status < 300) {
    in_time += moment < end;
    add(&ok_due, moment - c->due);
    add(&ok_sent, moment - c->sent);
  } else if (status == 503) {
    add(&refused_due, moment - c->due);
    add(&refused_sent, moment - c->sent);
  } else {
    failed++;
  }
  if (c->must_close) {
    close_connection(number);
    if (!open_connection(number)) { dropped++; return; }
  }
  go_on(number);
}

static char *find(char *from, char *to, const char *word) {
  size_t size = strlen(word);
  for (; from + size <= to; from++)
    if (*from == *word && !strncasecmp(from, word, size)) return from;
  return NULL;
}

static void read_answer(int number) {
  connection *c = &connections[number];
  for (;;) {
    if (c->room - c->held < 32768 && c->room < BUFFER) {
      c->room = c->room ? 2 * c->room : 65536;
      c->buffer = must(realloc(c->buffer, c->room));
    }
    if (c->held == c->room) { lost(number); return; }
    ssize_t got = recv(c->fd, c->buffer + c->held, c->room - c->held, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
    if (got <= 0) { lost(number); return; }
    c->held += got;
    bytes += got;
    if (!c->is_busy) { lost(number); return; }   /* nobody asked */
    char *head_end = memmem(c->buffer, c->held, "\r\n\r\n", 4);
    if (!head_end) continue;
    char *length = find(c->buffer, head_end, "\r\ncontent-length:");
    if (!length || c->held < 12) { lost(number); return; }
    size_t whole = head_end + 4 - c->buffer + strtoul(length + 17, NULL, 10);
    if (c->held < whole) continue;
    c->must_close = find(c->buffer, head_end, "\r\nconnection: close") != NULL;
    int status = atoi(c->buffer + 9);
    degraded += memmem(head_end, whole - (head_end - c->buffer), DEGRADED, strlen(DEGRADED)) != NULL;
    c->held = 0;
    answered(number, status);
    return;
  }
}

/* What is due leaves. */
static void send_due(void) {
  int64_t moment;
  while (rate > 0 && due < end && due <= (moment = now())) {
    add(&lag, moment - due);
    uint32_t which = take();
    int free_one = -1;
    while (idle_count && free_one < 0) {
      free_one = connections[idle[idle_first]].fd >= 0 ? idle[idle_first] : -1;
      idle_first = (idle_first + 1) % connection_count;
      idle_count--;
    }
    if (free_one >= 0) ask(free_one, due, which); else wait_in_queue(due, which);
    due = began + (int64_t)(++due_number * (SECOND / rate));
  }
}

static void look_at(int number, int is_room, int is_answer) {
  send_due();
  if (is_room && connections[number].fd >= 0) write_rest(number);
  if (is_answer && connections[number].fd >= 0) read_answer(number);
}

/* Wait until the moment, or until a connection is ready; look at those that are. */
static void wait_until(int64_t moment) {
  int64_t left = moment - now();
  if (left < 0) left = 0;
#ifdef __linux__
  struct pollfd whole = {.fd = watcher, .events = POLLIN};    /* epoll_wait alone counts milliseconds */
  struct timespec time = {left / SECOND, left % SECOND};
  if (left && rate >= DENSE && due < end) {
    if (connection_count > FEW && time.tv_sec == 0 && time.tv_nsec < PAUSE) time.tv_nsec = PAUSE;
    nanosleep(&time, NULL);
  }
  else if (left && ppoll(&whole, 1, &time, NULL) <= 0) return;
  int found = epoll_wait(watcher, ready, AT_ONCE, 0);
  for (int each = 0; each < found; each++)
    look_at((int)ready[each].data.u32, ready[each].events & EPOLLOUT, ready[each].events & ~(uint32_t)EPOLLOUT);
#else
  poll(polled, connection_count, (int)(left / 1000000));   /* below a millisecond it asks again and again */
  for (int each = 0; each < connection_count; each++)
    if (polled[each].fd >= 0 && polled[each].revents)
      look_at(each, polled[each].revents & POLLOUT, polled[each].revents & ~POLLOUT);
#endif
}

/* A generator that waits for a processor would charge the server with it. */
static const char *come_first(void) {
#ifdef __linux__
  struct sched_param lowest = {.sched_priority = 1};
  if (!sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &lowest)) return "fifo";
#endif
  return setpriority(PRIO_PROCESS, 0, -20) ? "usual" : "nice -20";
}

static int compare(const void *a, const void *b) {
  float x = *(const float *)a, y = *(const float *)b;
  return (x > y) - (x < y);
}

static void tell(const char *name, times *some) {
  qsort(some->at, some->count, sizeof *some->at, compare);
  const double shares[] = {0.5, 0.99, 0.999, 1.0};
  const char *names[] = {"p50", "p99", "p999", "max"};
  printf(", \"%s\": {\"count\": %zu", name, some->count);
  for (int at = 0; at < 4 && some->count; at++) {
    size_t place = (size_t)(shares[at] * some->count);
    printf(", \"%s\": %.4f", names[at], some->at[place < some->count ? place : some->count - 1]);
  }
  printf("}");
}

static void load_requests(const char *path) {
  FILE *file = fopen(path, "rb");
  uint32_t size, room = 0;
  if (!file) { perror(path); exit(2); }
  while (fread(&size, sizeof size, 1, file) == 1) {
    char *data = must(malloc(size));
    if (fread(data, 1, size, file) != size) { fprintf(stderr, "%s ends too early\n", path); exit(2); }
    if (request_count == room) {
      room = room ? 2 * room : 1024;
      requests = must(realloc(requests, room * sizeof *requests));
    }
    requests[request_count++] = (request){data, size};
  }
  fclose(file);
  if (!request_count) { fprintf(stderr, "%s holds no request\n", path); exit(2); }
}

int main(int count, char **words) {
  if (count != 6) { fprintf(stderr, "sender PORT SECONDS RATE CONNECTIONS FILE\n"); return 2; }
  address.sin_family = AF_INET;
  address.sin_port = htons((uint16_t)atoi(words[1]));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  double seconds = atof(words[2]);
  rate = atof(words[3]);
  connection_count = atoi(words[4]);
  load_requests(words[5]);
  signal(SIGPIPE, SIG_IGN);
  signal(SIGTERM, on_signal);
#ifdef __linux__
  prctl(PR_SET_TIMERSLACK, 1UL, 0, 0, 0);
#endif
  connections = must(calloc(connection_count, sizeof *connections));
  idle = must(calloc(connection_count, sizeof *idle));
  prepare_watch();
  for (int number = 0; number < connection_count; number++)
    if (!open_connection(number)) { perror("connect"); return 3; }
  const char *priority = rate > 0 && connection_count <= FEW ? come_first() : "usual";
  int64_t moment;
  due = began = now();
  end = began + (int64_t)(seconds * SECOND);
  for (int each = 0; each < connection_count; each++) go_on(each);
  while ((moment = now()) < end || (rate > 0 && due < end) || ((busy || queue_count) && moment < end + GRACE)) {
    if (is_asked_to_end && end > moment) end = moment;
    send_due();
    wait_until(moment >= end ? moment + SECOND / 100 : rate > 0 && due < end ? due : end);
  }
  struct rusage used;
  getrusage(RUSAGE_SELF, &used);
  double processor = used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
  printf("{\"seconds\": %.6f, \"in_time\": %lld, \"failed\": %lld, \"unanswered\": %lld, \"dropped\": %lld, \"degraded\": %lld, "
         "\"bytes\": %lld, \"processor_seconds\": %.6f, \"priority\": \"%s\"",
         (end - began) / 1e9, (long long)in_time, (long long)failed, (long long)(busy + queue_count),
         (long long)dropped, (long long)degraded, (long long)bytes, processor, priority);
  tell("lag", &lag);
  tell("ok_due", &ok_due);
  tell("ok_sent", &ok_sent);
  tell("refused_due", &refused_due);
  tell("refused_sent", &refused_sent);
  printf("}\n");
  return 0;
}
