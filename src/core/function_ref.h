// FunctionRef: a callable passed down for the length of a call, without owning or allocating.
#pragma once

#include <memory>
#include <type_traits>
#include <utility>

namespace ultraflash {

template <typename Signature>
class FunctionRef;

/// Refers to a callable that must outlive the reference: for parameters only.
template <typename R, typename... Args>
class FunctionRef<R(Args...)> {
 public:
  template <typename F, typename = std::enable_if_t<!std::is_same_v<std::decay_t<F>, FunctionRef>>>
  FunctionRef(F&& function)  // NOLINT(google-explicit-constructor): by design
      : object_(const_cast<void*>(static_cast<const void*>(std::addressof(function)))),
        call_([](void* object, Args... args) -> R {
          return (*static_cast<std::remove_reference_t<F>*>(object))(std::forward<Args>(args)...);
        }) {}

  R operator()(Args... args) const { return call_(object_, std::forward<Args>(args)...); }

 private:
  void* object_;
  R (*call_)(void*, Args...);
};

}  // namespace ultraflash
